// Whether a pass counts: some grad is another tensor, or another version of it, than when the pass began. Without this
// an empty pass followed by a plain backward() would train without noise. As optim/counted.py in Python, which looks
// less often, since looking is slow there. Tests: tests/cpp/test_api_counted.cpp.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "noise/members.h"

namespace torch_ssam::detail {

class GradientWatch {
 public:
  // Notes what is there now; weakly, so that gradients that are cleared inside of the pass are free at once.
  explicit GradientWatch(const Groups& groups) {
    for (const auto& group : groups) {
      for (const at::Tensor& p : group.params()) seen_.emplace_back(p.grad());
    }
  }

  bool changed(const Groups& groups) const {
    std::size_t i = 0;
    for (const auto& group : groups) {
      for (const at::Tensor& p : group.params()) {
        if (i == seen_.size() || !seen_[i++].is(p.grad())) return true;
      }
    }
    return false;
  }

 private:
  class Seen {
   public:
    explicit Seen(const at::Tensor& grad) : version_(version_of(grad)) {
      if (grad.defined()) grad_.emplace(grad.getIntrusivePtr());
    }
    bool is(const at::Tensor& grad) const {
      if (!grad_ || !grad.defined()) return grad_.has_value() == grad.defined();
      return grad_->lock().get() == grad.unsafeGetTensorImpl() && version_ == version_of(grad);
    }

   private:
    // Tensors made in InferenceMode have none.
    static std::uint32_t version_of(const at::Tensor& grad) {
      return grad.defined() && !grad.is_inference() ? static_cast<std::uint32_t>(grad._version()) : 0;
    }
    std::optional<c10::weak_intrusive_ptr<at::TensorImpl, at::UndefinedTensorImpl>> grad_;
    std::uint32_t version_;
  };

  std::vector<Seen> seen_;
};

}  // namespace torch_ssam::detail
