// See generator.h.
#include "noise/generator.h"

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/InferenceMode.h>

#include "operators.h"

namespace torch_ssam::detail {

std::int64_t Generator::draw() const { return tensors_.empty() ? draw_ : tensors_.front()[1].item<std::int64_t>(); }

void Generator::set(std::int64_t seed, std::int64_t draw) {
  const at::NoGradGuard no_grad;
  seed_ = seed;
  draw_ = draw;
  for (at::Tensor& tensor : tensors_) tensor.copy_(at::tensor({seed, draw}, at::kLong));
}

void Generator::advance() {
  if (tensors_.empty()) ++draw_;
  for (const at::Tensor& tensor : tensors_) ops::advance_(tensor);
}

at::Tensor Generator::on(at::Device device) {
  for (const at::Tensor& tensor : tensors_) {
    if (tensor.device() == device) return tensor;
  }
  TORCH_CHECK(device.is_cpu() || device.is_cuda(), "torch_ssam: no kernels for device type '", device.type(),
              "'; expected cpu or cuda.");
  const c10::InferenceMode normal(false);  // it outlives an InferenceMode around us
  tensors_.push_back(at::tensor({seed_, draw()}, at::kLong).to(device));
  return tensors_.back();
}

}  // namespace torch_ssam::detail
