// What every operator knows of a tensor, and the preconditions that operators share: dtypes, devices, layouts, lists
// of equal length and shape, the generator. Each is written once, here; the message says what came, what was expected
// and what to do. Tests: tests/python/test_ops_errors.py.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "direct.h"

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

const char* dtype_name(ScalarType dtype);
std::string shape_of(const TensorView& view);
std::string shape_of(const Tensor& tensor);

enum class Use { reads, writes };

// Given (the dispatcher lets None through where a schema asks for a tensor) and dense. `name` and `index` are for
// messages, here and below.
void check_strided(const Tensor& tensor, const char* name, std::optional<size_t> index = {});

// Strided and real floating point; without overlapping elements if it is written. What holds for a tensor of
// the dispatcher holds for one of a direct call.
TensorView view_parameter(const Tensor& tensor, const char* name, std::optional<size_t> index, Use use);
TensorView view_parameter(const PlainTensor& tensor, const char* name, std::optional<size_t> index, Use use);

template <typename AnyTensor>
TensorViews view_parameters(const std::vector<AnyTensor>& tensors, const char* name, Use use) {
  TensorViews views;
  views.reserve(tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) views.push_back(view_parameter(tensors[i], name, i, use));
  return views;
}

// `views` has one tensor for each of `like`, of the same shape and, unless `any_dtype`, of the same dtype.
void check_matches(const TensorViews& views, const char* name, const TensorViews& like, const char* like_name,
                   bool any_dtype = false);

// All tensors on one device, that of `generator` if given.
void check_one_device(const std::vector<Tensor>& tensors, const char* name, const Tensor& other,
                      const char* other_name);
inline void check_one_device(const std::vector<PlainTensor>&, const char*, const PlainTensor&, const char*) {}

// LibTorch's contiguous and new_empty go through the dispatcher, which costs some thousand instructions each.
Tensor as_contiguous(const Tensor& tensor);
// Uninitialised, with the dtype and device of `like`.
Tensor empty_beside(const Tensor& like, const std::vector<int64_t>& sizes);

// The memory of an int64 tensor (seed, draw).
const int64_t* view_generator(const Tensor& generator);
void check_places(const std::vector<int64_t>& places, size_t count);

// A number given as a tensor (lr), if it is given: one float32 or float64, on the device of `beside`, if there is one.
void check_number(const std::optional<Tensor>& number, const char* name, const Tensor* beside, const char* beside_name);
void check_finite_nonnegative(double value, const char* name);

// A `Tensor[]` argument of an operator. PyTorch takes Python's lock to let go of a tensor that only Python holds
// besides, which costs more than all checks of the tensor; here the lock is taken once for the list.
class TensorList : public std::vector<Tensor> {
 public:
  explicit TensorList(std::vector<Tensor> tensors) : std::vector<Tensor>(std::move(tensors)) {}
  TensorList(TensorList&&) = default;
  TensorList& operator=(TensorList&&) = default;
  ~TensorList();
};

// A `str` argument of an operator as the dispatcher hands it over, to be taken exactly once, before any check may
// refuse the call. Declared as std::string, it would go through a conversion that leaks a string a call in PyTorch 2.10
// to 2.13 (pytorch issue 191340).
struct StringArgument {
  StringHandle handle;
};
std::string take(StringArgument argument);

// The value of a name in a list of names and values, or a message that says which there are.
template <typename Value>
struct Named {
  const char* name;
  Value value;
};

template <typename Value, size_t kCount>
Value find_named(const std::string& name, const char* what, const Named<Value> (&known)[kCount]) {
  for (const Named<Value>& each : known) {
    if (name == each.name) return each.value;
  }
  std::string names;
  for (size_t i = 0; i < kCount; ++i) {
    names += (i == 0 ? "'" : i + 1 < kCount ? ", '" : " or '") + std::string(known[i].name) + "'";
  }
  fail(what, " is '", name, "'; expected ", names, ".");
}

}  // namespace torch_ssam

template <>
struct torch::stable::detail::ToImpl<torch_ssam::TensorList> {
  static torch_ssam::TensorList call(StableIValue value, uint64_t build_version, bool is_internal) {
    return torch_ssam::TensorList(ToImpl<std::vector<Tensor>>::call(value, build_version, is_internal));
  }
};
