// DiagonalLinear: y = x * w_1 * ... * w_L elementwise, or its sum over features, as one fused operator; no division,
// differentiable to any order. The model of arXiv 2503.11891; torch_ssam::theory has its closed forms.
//   torch_ssam::DiagonalLinear layer(torch_ssam::DiagonalLinearOptions(100, 3));
// Tests: tests/cpp/test_api_diagonal.cpp, tests/python/test_cpp_parity.py.
#pragma once

#include <torch/arg.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/pimpl.h>

#include <cstdint>
#include <iosfwd>
#include <optional>
#include <string>
#include <vector>

namespace torch_ssam {

struct DiagonalLinearOptions {
  DiagonalLinearOptions(std::int64_t features, std::int64_t depth = 2) : features_(features), depth_(depth) {}
  TORCH_ARG(std::int64_t, features);                              // size d of the input's last dimension
  TORCH_ARG(std::int64_t, depth);                                 // number L of layers, >= 1
  TORCH_ARG(std::optional<std::string>, readout) = std::nullopt;  // "sum" sums the last dimension
  TORCH_ARG(std::vector<double>, init_scale) = { 1.0 };           // one number, or one per layer
  TORCH_ARG(double, noise_std) = 0;  // > 0: in training mode each forward draws noise of its own on the weights
  TORCH_ARG(std::optional<std::int64_t>, seed) = std::nullopt;  // of that noise; none: from torch's generator

 public:
  DiagonalLinearOptions& init_scale(double everywhere) { return init_scale(std::vector<double>{everywhere}); }
};

class DiagonalLinearImpl : public torch::nn::Cloneable<DiagonalLinearImpl> {
 public:
  explicit DiagonalLinearImpl(std::int64_t features, std::int64_t depth = 2)
      : DiagonalLinearImpl(DiagonalLinearOptions(features, depth)) {}
  explicit DiagonalLinearImpl(const DiagonalLinearOptions& options_);

  void reset() override;
  void reset_parameters();  // every layer to its init_scale
  void pretty_print(std::ostream& stream) const override;

  // As Module::to, save that the generator stays int64: LibTorch casts every buffer.
  void to(torch::Device device, torch::Dtype dtype, bool non_blocking = false) override;
  void to(torch::Dtype dtype, bool non_blocking = false) override;
  void to(torch::Device device, bool non_blocking = false) override;

  // input (..., features) -> (..., features), or (...) with readout.
  at::Tensor forward(const at::Tensor& input);

  at::Tensor product() const;       // w_1 * ... * w_L, shape (features,), differentiable
  at::Tensor balance_gaps() const;  // w_i^2 - w_j^2, shape (depth, depth, features)

  DiagonalLinearOptions options;
  at::Tensor weight;     // (depth, features)
  at::Tensor generator;  // int64 (seed, draw), a buffer

 private:
  template <typename... Args>
  void keep_generator(Args... args);
};

TORCH_MODULE(DiagonalLinear);

}  // namespace torch_ssam
