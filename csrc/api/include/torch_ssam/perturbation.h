// What perturb(), perturbations() and WeightNoise::applied() return: while such an object lives, the parameters hold
// clean + noise; when it ends, by the brace or by an exception, the exact clean bits are back.
// A destructor must not throw, so parameters that were written to meanwhile are reported by restore(), or, where only
// the destructor ran, by a warning and then by the optimizer's next step() or perturb(). Tests: test_api_driving.cpp.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <array>
#include <cstdint>
#include <iterator>
#include <memory>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

namespace torch_ssam {

class NoiseDriver;
class WeightNoise;

namespace detail {
struct Drive;
struct Loop;
}  // namespace detail

// Parameters were written to while they held perturbed weights.
class __attribute__((visibility("default"))) PerturbedWeightsChanged : public c10::Error {
 public:
  using c10::Error::Error;
};

// One pass at perturbed weights. Move-only.
class [[nodiscard("the weights are perturbed only while this object lives")]] Perturbation {
 public:
  Perturbation(Perturbation&& other) noexcept;
  Perturbation& operator=(Perturbation&& other) noexcept;
  Perturbation(const Perturbation&) = delete;
  Perturbation& operator=(const Perturbation&) = delete;
  ~Perturbation();

  // Puts the clean weights back now. Throws PerturbedWeightsChanged, naming them, if parameters were written to.
  void restore();

 private:
  friend class NoiseDriver;
  friend class WeightNoise;
  friend class Perturbations;
  friend struct detail::Loop;
  Perturbation(std::shared_ptr<detail::Drive> drive, bool advances);
  void restore_in_destructor() noexcept;

  std::shared_ptr<detail::Drive> drive_;  // null once the clean weights are back
  bool advances_;
  int exceptions_;
};

// The passes of one step: `for ([[maybe_unused]] auto k : opt.perturbations()) loss().backward();`. Move-only, one
// loop.
class [[nodiscard("loop over it")]] Perturbations {
 public:
  class Iterator {
   public:
    using value_type = std::int64_t;
    using difference_type = std::ptrdiff_t;
    std::int64_t operator*() const;
    Iterator& operator++();
    void operator++(int) { ++*this; }
    bool operator==(std::default_sentinel_t) const;

   private:
    friend class Perturbations;
    explicit Iterator(detail::Loop* loop) : loop_(loop) {}
    detail::Loop* loop_;
  };

  Perturbations(Perturbations&&) noexcept;
  Perturbations& operator=(Perturbations&&) = delete;
  Perturbations(const Perturbations&) = delete;
  Perturbations& operator=(const Perturbations&) = delete;
  ~Perturbations();

  Iterator begin();
  std::default_sentinel_t end() const { return {}; }

  // First and last + 1 of the examples of a pass, where the batch is split.
  std::pair<std::int64_t, std::int64_t> part(std::int64_t pass) const;

 private:
  friend class NoiseDriver;
  explicit Perturbations(std::unique_ptr<detail::Loop> loop);
  std::unique_ptr<detail::Loop> loop_;
};

// The same with the batch split over the passes: `for (auto [x_k, y_k] : opt.perturbations(x, y))`. One input gives
// its part itself, several an array of parts.
template <std::size_t N>
class [[nodiscard("loop over it")]] BatchPerturbations {
 public:
  using Part = std::conditional_t<N == 1, at::Tensor, std::array<at::Tensor, N>>;

  class Iterator {
   public:
    using value_type = Part;
    using difference_type = std::ptrdiff_t;
    Part operator*() const {
      const auto [begin, end] = owner_->passes_.part(*pass_);
      if constexpr (N == 1) {
        return owner_->inputs_[0].slice(0, begin, end);
      } else {
        Part parts;
        for (std::size_t i = 0; i < N; ++i) parts[i] = owner_->inputs_[i].slice(0, begin, end);
        return parts;
      }
    }
    Iterator& operator++() {
      ++pass_;
      return *this;
    }
    void operator++(int) { ++*this; }
    bool operator==(std::default_sentinel_t sentinel) const { return pass_ == sentinel; }

   private:
    friend class BatchPerturbations;
    Iterator(const BatchPerturbations* owner, Perturbations::Iterator pass) : owner_(owner), pass_(pass) {}
    const BatchPerturbations* owner_;
    Perturbations::Iterator pass_;
  };

  Iterator begin() { return Iterator(this, passes_.begin()); }
  std::default_sentinel_t end() const { return {}; }

 private:
  friend class NoiseDriver;
  BatchPerturbations(Perturbations passes, std::array<at::Tensor, N> inputs)
      : passes_(std::move(passes)), inputs_(std::move(inputs)) {}
  Perturbations passes_;
  std::array<at::Tensor, N> inputs_;
};

}  // namespace torch_ssam
