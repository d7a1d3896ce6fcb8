// The shared preconditions of tensors.h.
#include "tensors.h"

#include <algorithm>
#include <limits>

// Of the Python that this process may be: where it is none, they are null.
extern "C" {
__attribute__((weak)) int Py_IsInitialized();
__attribute__((weak)) void* PyGILState_GetThisThreadState();
__attribute__((weak)) int PyGILState_Ensure();
__attribute__((weak)) void PyGILState_Release(int);
}

namespace torch_ssam {
namespace {

// Python's lock, on a thread that came from Python: one that did not may be what a holder of the lock waits for.
class PythonLock {
 public:
  PythonLock() {
    if (PyGILState_Release != nullptr && PyGILState_Ensure != nullptr && PyGILState_GetThisThreadState != nullptr &&
        Py_IsInitialized != nullptr && Py_IsInitialized() && PyGILState_GetThisThreadState() != nullptr) {
      before_ = PyGILState_Ensure();
    }
  }
  ~PythonLock() {
    if (before_) PyGILState_Release(*before_);
  }
  PythonLock(const PythonLock&) = delete;
  PythonLock& operator=(const PythonLock&) = delete;

 private:
  std::optional<int> before_;
};

}  // namespace

const char* dtype_name(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Double:
      return "float64";
    case ScalarType::Float:
      return "float32";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Half:
      return "float16";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Bool:
      return "bool";
    case ScalarType::ComplexFloat:
      return "complex64";
    case ScalarType::ComplexDouble:
      return "complex128";
    default:
      return "another dtype";
  }
}

namespace {

std::string list_text(const int64_t* values, int64_t count) {
  std::ostringstream text;
  text << '(';
  for (int64_t i = 0; i < count; ++i) text << (i ? ", " : "") << values[i];
  text << (count == 1 ? ",)" : ")");
  return text.str();
}

bool is_supported(ScalarType dtype) {
  return dtype == ScalarType::Double || dtype == ScalarType::Float || dtype == ScalarType::BFloat16 ||
         dtype == ScalarType::Half;
}

// Sorted by stride, each dimension must step over all that the smaller ones reach.
bool elements_overlap(const TensorView& view) {
  if (view.contiguous || view.numel < 2) return false;
  std::vector<std::pair<int64_t, int64_t>> steps;
  for (int64_t d = 0; d < view.dim; ++d) {
    if (view.sizes[d] > 1) steps.emplace_back(view.strides[d], view.sizes[d]);
  }
  std::sort(steps.begin(), steps.end());
  int64_t reach = 0;
  for (const auto& [stride, size] : steps) {
    if (stride <= reach) return true;
    reach += stride * (size - 1);
  }
  return false;
}

std::string item(const char* name, std::optional<size_t> index) {
  return index ? std::string(name) + "[" + std::to_string(*index) + "]" : name;
}

}  // namespace

std::string shape_of(const TensorView& view) { return list_text(view.sizes, view.dim); }

std::string shape_of(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return list_text(sizes.data(), static_cast<int64_t>(sizes.size()));
}

void check_strided(const Tensor& tensor, const char* name, std::optional<size_t> index) {
  TORCH_SSAM_CHECK(tensor.defined(), item(name, index), " is None; expected a tensor.");
  int32_t layout = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_layout(tensor.get(), &layout));
  TORCH_SSAM_CHECK(
      layout == aoti_torch_layout_strided(), item(name, index),
      " is sparse; expected a dense (strided) tensor. Use tensor.to_dense(), or sparse=False in the embedding.");
}

namespace {

// What is the same for every kind of tensor.
void check_view(const TensorView& view, const char* name, std::optional<size_t> index, Use use) {
  TORCH_SSAM_CHECK(is_supported(view.dtype), item(name, index), " has dtype ", dtype_name(view.dtype),
                   "; expected float64, float32, bfloat16 or float16.");
  TORCH_SSAM_CHECK(use == Use::reads || !elements_overlap(view), item(name, index), " has overlapping elements: shape ",
                   shape_of(view), " strides ", list_text(view.strides, view.dim),
                   ". Writing to it is not defined; use tensor.clone() or .contiguous().");
}

ScalarType dtype_of(PlainTensor::Dtype dtype) {
  switch (dtype) {
    case PlainTensor::Dtype::f64:
      return ScalarType::Double;
    case PlainTensor::Dtype::f32:
      return ScalarType::Float;
    case PlainTensor::Dtype::bf16:
      return ScalarType::BFloat16;
    case PlainTensor::Dtype::f16:
      return ScalarType::Half;
  }
  return ScalarType::Undefined;
}

}  // namespace

TensorView view_parameter(const Tensor& tensor, const char* name, std::optional<size_t> index, Use use) {
  check_strided(tensor, name, index);
  int32_t code = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &code));
  TensorView view{};
  view.dtype = code == aoti_torch_dtype_float32() ? ScalarType::Float : tensor.scalar_type();
  view.numel = tensor.numel();
  const auto sizes = tensor.sizes();
  view.dim = static_cast<int64_t>(sizes.size());
  view.sizes = sizes.data();
  view.strides = tensor.strides().data();
  view.contiguous = tensor.is_contiguous();
  check_view(view, name, index, use);
  view.data = tensor.data_ptr();
  return view;
}

TensorView view_parameter(const PlainTensor& tensor, const char* name, std::optional<size_t> index, Use use) {
  TensorView view{tensor.data, dtype_of(tensor.dtype), 1, tensor.dim, tensor.sizes, tensor.strides, true};
  for (int64_t d = view.dim - 1; d >= 0; --d) {
    view.contiguous &= view.sizes[d] == 1 || view.strides[d] == view.numel;
    view.numel *= view.sizes[d];
  }
  view.contiguous |= view.numel == 0;
  check_view(view, name, index, use);
  return view;
}

void check_matches(const TensorViews& views, const char* name, const TensorViews& like, const char* like_name,
                   bool any_dtype) {
  TORCH_SSAM_CHECK(views.size() == like.size(), name, " has ", views.size(), " tensors and ", like_name, " has ",
                   like.size(), "; expected one for each.");
  for (size_t i = 0; i < views.size(); ++i) {
    TORCH_SSAM_CHECK(
        views[i].dim == like[i].dim && std::equal(views[i].sizes, views[i].sizes + views[i].dim, like[i].sizes),
        item(name, i), " has shape ", shape_of(views[i]), " and ", item(like_name, i), " has ", shape_of(like[i]),
        "; expected the same.");
    TORCH_SSAM_CHECK(any_dtype || views[i].dtype == like[i].dtype, item(name, i), " has dtype ",
                     dtype_name(views[i].dtype), " and ", item(like_name, i), " has ", dtype_name(like[i].dtype),
                     "; expected the same.");
  }
}

void check_one_device(const std::vector<Tensor>& tensors, const char* name, const Tensor& other,
                      const char* other_name) {
  const bool cpu = other.is_cpu();
  const int32_t index = cpu ? -1 : other.get_device_index();
  for (size_t i = 0; i < tensors.size(); ++i) {
    const bool same = tensors[i].is_cpu() == cpu && (cpu || tensors[i].get_device_index() == index);
    TORCH_SSAM_CHECK(
        same, item(name, i), " and ", other_name,
        " are on different devices; expected one device a call. Move them to one, or call once for each device.");
  }
}

Tensor as_contiguous(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

Tensor empty_beside(const Tensor& like, const std::vector<int64_t>& sizes) {
  int32_t dtype = 0, device_type = 0, device_index = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  std::vector<int64_t> strides(sizes.size());
  int64_t stride = 1;
  for (size_t d = sizes.size(); d-- > 0;) {
    strides[d] = stride;
    stride *= std::max<int64_t>(sizes[d], 1);
  }
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(),
                                                         strides.data(), dtype, device_type, device_index, &handle));
  return Tensor(handle);
}

const int64_t* view_generator(const Tensor& generator) {
  check_strided(generator, "generator");
  TORCH_SSAM_CHECK(generator.scalar_type() == ScalarType::Long && generator.numel() == 2 && generator.is_contiguous(),
                   "generator has dtype ", dtype_name(generator.scalar_type()), " and ", generator.numel(),
                   " elements; expected a contiguous int64 tensor of two, (seed, draw).");
  return static_cast<const int64_t*>(generator.data_ptr());
}

void check_places(const std::vector<int64_t>& places, size_t count) {
  TORCH_SSAM_CHECK(places.size() == count, "places has ", places.size(), " entries for ", count,
                   " tensors; expected one each.");
  for (const int64_t place : places) {
    TORCH_SSAM_CHECK(place >= 0 && place <= 0xffffffffLL, "place ", place, " is out of range; expected 0 to 2^32 - 1.");
  }
}

void check_number(const std::optional<Tensor>& number, const char* name, const Tensor* beside,
                  const char* beside_name) {
  if (!number) return;
  check_strided(*number, name);
  const ScalarType dtype = number->scalar_type();
  TORCH_SSAM_CHECK(number->numel() == 1 && (dtype == ScalarType::Float || dtype == ScalarType::Double), name, " has ",
                   number->numel(), " elements and dtype ", dtype_name(dtype),
                   "; expected one float32 or float64 number.");
  if (beside != nullptr) check_one_device(std::vector<Tensor>{*number}, name, *beside, beside_name);
}

void check_finite_nonnegative(double value, const char* name) {
  // Kernels compute in float for every dtype but float64.
  TORCH_SSAM_CHECK(value >= 0.0 && value <= static_cast<double>(std::numeric_limits<float>::max()), name, " is ", value,
                   "; expected a finite number >= 0 (and within float32's range).");
}

TensorList::~TensorList() {
  if (empty()) return;
  const PythonLock lock;
  clear();
}

std::string take(StringArgument argument) {
  size_t length = 0;
  const char* data = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(torch_string_length(argument.handle, &length));
  STABLE_TORCH_ERROR_CODE_CHECK(torch_string_c_str(argument.handle, &data));
  std::string text(data, length);
  STABLE_TORCH_ERROR_CODE_CHECK(torch_delete_string(argument.handle));
  return text;
}

}  // namespace torch_ssam
