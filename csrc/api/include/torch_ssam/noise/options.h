// The options of noise, as NOISE_OPTIONS in Python's noise/options.py: those that WeightNoise has too, and those of
// optimizers, which see gradients and run passes. Tests: tests/cpp/test_api_errors.cpp,
// tests/python/test_cpp_options.py.
#pragma once

#include <torch_ssam/option.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

// scale: "filter" is the norm |w_f| of the filter, f along channel_dim, a 1-D tensor being one filter (LPF-SGD, arXiv
// 2201.08025); "tensor" |w|; "absmax" and "tensor_absmax" the largest |w_i| of each; "element" |w_i| + 0.01, after the
// operator of ASAM; "fisher" |w_f| / sqrt(1 + fisher_factor F), F <- fisher_decay F + sum of squared gradients of the
// filter at each step (ARWP, arXiv 2404.00357; the defaults are those of its scripts). memory: "regenerate" draws the
// noise again to take it off: a weight w with noise n comes back within u (|w + n| + |w|), u = 2^-24 for Float; Float
// and Double, and scale "isotropic", only.
#define TORCH_SSAM_NOISE_OPTIONS(X)                                                                          \
  X(double, noise_std, 0.01, at_least(0), "standard deviation of the noise on each weight, times its scale") \
  X(std::string, distribution, "gaussian", one_of("gaussian", "rademacher"), "of the noise")                 \
  X(std::string, scale, "isotropic",                                                                         \
    one_of("isotropic", "tensor", "filter", "element", "fisher", "absmax", "tensor_absmax"),                 \
    "what noise_std is multiplied by: 1, or a norm or range of the clean weights")                           \
  X(std::int64_t, channel_dim, 0, between(0, 4294967295.0),                                                  \
    "the dimension that counts filters: 0 for Linear and Conv, 1 for ConvTranspose")                         \
  X(std::string, memory, "copy", one_of("copy", "regenerate"),                                               \
    "a copy of the clean weights, which come back exactly, or none, which costs two roundings")

#define TORCH_SSAM_PASS_OPTIONS(X)                                                                         \
  X(double, fisher_decay, 0.99, between(0, 1), "decay of the sums of squared gradients of scale 'fisher'") \
  X(double, fisher_factor, 0.1, at_least(0), "factor of the sums of squared gradients of scale 'fisher'")  \
  X(std::optional<double>, weight_clip, std::nullopt, above(1),                                            \
    "after a step each weight is at most this many times the root mean square of its filter's weights")    \
  X(std::int64_t, samples, 1, between(1, 4294967295.0), "draws whose gradients are averaged in a step")    \
  X(bool, antithetic, false, any(), "each draw twice, as +noise and -noise")                               \
  X(double, clean_weight, 0, from_up_to(0, 1), "the share of the gradient at the clean weights")           \
  X(bool, keep_perturbed, false, any(), "train() perturbs the weights, and step() leaves them so with the next draw")

namespace torch_ssam {

// What WeightNoise and the optimizers share.
class NoiseOptions : public GroupOptions {
  TORCH_SSAM_NOISE_OPTIONS(TORCH_SSAM_OPTION_MEMBER)

 protected:
  void each(Visit visit) override { TORCH_SSAM_NOISE_OPTIONS(TORCH_SSAM_OPTION_LINE) }
};

// Their setters, for a class `Derived`, and its clone().
template <typename Derived, typename Options>
class NoiseSetters : public Options {
  using Self = Derived;
  using Base = Options;

  TORCH_SSAM_NOISE_OPTIONS(TORCH_SSAM_OPTION_OF_BASE)

 public:
  using Base::seed;
  Self& seed(const std::optional<std::int64_t>& value) {
    this->seed_ = value;
    return static_cast<Self&>(*this);
  }

  std::unique_ptr<torch::optim::OptimizerOptions> clone() const override {
    return std::make_unique<Self>(static_cast<const Self&>(*this));
  }
};

}  // namespace torch_ssam
