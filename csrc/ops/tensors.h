// What every operator knows of a tensor, and the preconditions that operators share: dtypes, devices, layouts, lists
// of equal length and shape, the generator. Each is written once, here; the message says what came, what was expected
// and what to do. Tests: tests/python/test_ops_errors.py.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "../math/noise.h"

// Symbols that the CUDA library takes from this one.
#define TORCH_SSAM_EXPORT __attribute__((visibility("default")))

namespace torch_ssam {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <typename... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  message << "torch_ssam: ";
  (message << ... << parts);
  throw std::invalid_argument(message.str());
}

// A macro, so that the parts of the message are made only when it is needed.
#define TORCH_SSAM_CHECK(holds, ...)   \
  do {                                 \
    if (!(holds)) [[unlikely]]         \
      ::torch_ssam::fail(__VA_ARGS__); \
  } while (false)

// A tensor's memory, without its reference count: valid while the caller holds the tensor.
struct TensorView {
  void* data;
  ScalarType dtype;
  int64_t numel;
  int64_t dim;
  const int64_t* sizes;
  const int64_t* strides;
  bool contiguous;
};

using TensorViews = std::vector<TensorView>;

TORCH_SSAM_EXPORT const char* dtype_name(ScalarType dtype);
TORCH_SSAM_EXPORT std::string shape_of(const TensorView& view);
TORCH_SSAM_EXPORT std::string shape_of(const Tensor& tensor);

enum class Use { reads, writes };

// Given (the dispatcher lets None through where a schema asks for a tensor) and dense. `name` and `index` are for
// messages, here and below.
TORCH_SSAM_EXPORT void check_strided(const Tensor& tensor, const char* name, std::optional<size_t> index = {});

// Strided and real floating point; without overlapping elements if it is written.
TORCH_SSAM_EXPORT TensorView view_parameter(const Tensor& tensor, const char* name, std::optional<size_t> index,
                                            Use use);
TORCH_SSAM_EXPORT TensorViews view_parameters(const std::vector<Tensor>& tensors, const char* name, Use use);

// `views` has one tensor for each of `like`, of the same shape and, unless `any_dtype`, of the same dtype.
TORCH_SSAM_EXPORT void check_matches(const TensorViews& views, const char* name, const TensorViews& like,
                                     const char* like_name, bool any_dtype = false);

// All tensors on one device, that of `generator` if given.
TORCH_SSAM_EXPORT void check_one_device(const std::vector<Tensor>& tensors, const char* name, const Tensor& other,
                                        const char* other_name);

// int64 tensor (seed, draw).
TORCH_SSAM_EXPORT void check_generator(const Tensor& generator);
TORCH_SSAM_EXPORT void check_places(const std::vector<int64_t>& places, size_t count);

// A number given as a tensor (lr, grad_scale, found_inf), if it is given: one float32 or float64, on the device of
// `beside`, if there are any.
TORCH_SSAM_EXPORT void check_number(const std::optional<Tensor>& number, const char* name,
                                    const std::vector<Tensor>& beside, const char* beside_name);
TORCH_SSAM_EXPORT void check_finite_nonnegative(double value, const char* name);

// A `str` argument of an operator as the dispatcher hands it over, to be taken exactly once, before any check may
// refuse the call. Declared as std::string, it would go through a conversion that leaks a string a call in PyTorch 2.10
// to 2.13 (pytorch issue 191340).
struct StringArgument {
  StringHandle handle;
};
TORCH_SSAM_EXPORT std::string take(StringArgument argument);
TORCH_SSAM_EXPORT math::Distribution parse_distribution(const std::string& name);

}  // namespace torch_ssam
