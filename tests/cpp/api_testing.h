// What the tests of the C++ API share: small models with fixed weights, exact comparison, and messages of errors.
#pragma once

#include <gtest/gtest.h>
#include <torch/torch.h>
#include <torch_ssam/torch_ssam.h>

#include <cstring>
#include <string>
#include <vector>

namespace torch_ssam::testing {

using torch::Tensor;

// Bit for bit, so that 0 and -0 differ and a NaN equals itself.
inline bool same_bits(const Tensor& a, const Tensor& b) {
  if (a.sizes() != b.sizes() || a.dtype() != b.dtype()) return false;
  const Tensor x = a.detach().contiguous(), y = b.detach().contiguous();
  return x.numel() == 0 || std::memcmp(x.const_data_ptr(), y.const_data_ptr(), x.nbytes()) == 0;
}

inline bool same_bits(const std::vector<Tensor>& a, const std::vector<Tensor>& b) {
  bool same = a.size() == b.size();
  for (std::size_t i = 0; same && i < a.size(); ++i) same = same_bits(a[i], b[i]);
  return same;
}

inline std::vector<Tensor> copies(const std::vector<Tensor>& tensors) {
  std::vector<Tensor> result;
  for (const Tensor& t : tensors) result.push_back(t.detach().clone());
  return result;
}

inline Tensor parameter(const Tensor& value) { return value.clone().detach().requires_grad_(true); }

// Odd sizes, a non-contiguous tensor, a matrix and an empty one.
inline std::vector<Tensor> parameters(torch::Dtype dtype = torch::kFloat) {
  torch::manual_seed(7);
  std::vector<Tensor> result;
  for (const std::vector<std::int64_t>& shape :
       std::vector<std::vector<std::int64_t>>{{33}, {5, 13}, {1}, {0}, {3, 2, 7}}) {
    result.push_back(parameter(torch::randn(shape, torch::kDouble).to(dtype)));
  }
  result.push_back(torch::randn({9, 6}, torch::kDouble).to(dtype).t().requires_grad_(true));
  return result;
}

// Bounded below, not convex, with a gradient that depends on the weights.
inline Tensor loss_of(const std::vector<Tensor>& params) {
  Tensor loss = torch::zeros({}, torch::kDouble);
  for (const Tensor& p : params) {
    const Tensor w = p.to(torch::kDouble);
    loss = loss + ((w + 0.5).square() / 2 + (3 * w).cos()).sum();
  }
  return loss;
}

inline std::vector<Tensor> grads_of(const std::vector<Tensor>& params) {
  std::vector<Tensor> result;
  for (const Tensor& p : params) result.push_back(p.grad().clone());
  return result;
}

// The update rules, for what all optimizers share: TYPED_TEST_SUITE(Suite, Rules, RuleNames). `with_state` asks for all
// the state that the rule can keep.
struct Sgd {
  using Optimizer = SSAM;
  using Options = SSAMOptions;
  static constexpr const char* kName = "Sgd";
  static constexpr const char* kFirstBuffer = "momentum_buffer";
  static Options with_state(Options options) { return options.momentum(0.9); }
};

struct AdamW {
  using Optimizer = SSAMAdamW;
  using Options = SSAMAdamWOptions;
  static constexpr const char* kName = "AdamW";
  static constexpr const char* kFirstBuffer = "exp_avg";
  static Options with_state(Options options) { return options.amsgrad(true); }
};

using Rules = ::testing::Types<Sgd, AdamW>;
template <typename Rule>
using OptimizerOf = typename Rule::Optimizer;
template <typename Rule>
using OptionsOf = typename Rule::Options;

struct RuleNames {
  template <typename Rule>
  static std::string GetName(int /*index*/) {
    return Rule::kName;
  }
};

// The message of the c10::Error that `call` must throw.
template <typename Call>
std::string error_of(const Call& call) {
  try {
    call();
  } catch (const c10::Error& error) {
    return error.what_without_backtrace();
  }
  ADD_FAILURE() << "no c10::Error was thrown";
  return {};
}

#define EXPECT_MESSAGE(statement, part)                                                      \
  do {                                                                                       \
    const std::string message = ::torch_ssam::testing::error_of([&] { (void)(statement); }); \
    EXPECT_NE(message.find(part), std::string::npos) << message;                             \
  } while (false)

}  // namespace torch_ssam::testing
