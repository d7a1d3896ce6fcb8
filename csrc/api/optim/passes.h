// The passes of one step, behind Perturbations: which noise each takes, its weight in the mean gradient, and the
// scaling of grad that makes the loop end in what it held before plus that mean. As perturbations() in optim/base.py.
#pragma once

#include <torch_ssam/optim/base.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <unordered_map>
#include <utility>
#include <vector>

#include "noise/scope.h"

namespace torch_ssam::detail {

struct Pass {
  std::int64_t sample;
  bool negate, clean;
};

// Every pass of one step, at most `most` of them.
std::vector<Pass> passes_of_step(const FusedOptions& options, std::size_t most);

// clean_weight for the clean pass, shares of the rest for the others.
std::vector<double> weights_of(const std::vector<Pass>& passes, const std::vector<double>& shares, double clean_weight);

// Weighted sums of gradients that are taken off their parameters meanwhile: in float32 for 16-bit ones, in which a sum
// over many passes would stall, or overflow before it is a mean.
class HeldGradients {
 public:
  static bool is_half(const at::Tensor& tensor);
  void take(const at::Tensor& param, double weight);  // weight times its gradient, which is cleared for the next pass
  void put_back();                                    // makes the sums the parameters' gradients
  bool empty() const { return held_.empty(); }

 private:
  struct Held {
    at::Tensor param, sum;
    at::ScalarType dtype;
  };
  std::vector<Held> held_;
  std::unordered_map<const c10::TensorImpl*, std::size_t> index_;
};

struct Loop {
  std::shared_ptr<Drive> drive;
  std::vector<Pass> passes;
  std::vector<double> weights;
  std::vector<std::pair<std::int64_t, std::int64_t>> parts = {};
  double scale = 1;  // grad holds the sum so far divided by this
  std::size_t current = 0;
  bool started = false, finished = false;
  std::optional<Perturbation> pass = std::nullopt;
  HeldGradients held = {};  // of 16 bits

  void start();
  void next();
  void finish();
  Perturbation make_pass() const;  // of passes[current]

 private:
  void enter();
  void hold_grads();
  void scale_grads(double factor) const;
};

}  // namespace torch_ssam::detail
