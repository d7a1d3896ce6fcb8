// A step of many tensors as one call: every tensor is read afresh, in C, and the operator's entry (ops/direct.h) is
// called with their memory. Nothing is kept between steps, so nothing can go stale. Whatever is out of the ordinary (a
// tensor's type, device or layout, one that somebody wrote to, a missing gradient) gives False before anything is
// written, and the caller takes the way through the dispatcher, which serves it or says what is wrong. Tensors are read
// through DLPack's C exchange, a stable interface, and torch's own attributes. Tests: tests/python/test_direct.py.
#include "../ops/direct.h"

#include <ATen/dlpack.h>
#include <dlfcn.h>

#include "bindings.h"

namespace torch_ssam::python {
namespace {

namespace py = pybind11;

// What `bind` found of PyTorch. Held for the life of the process.
struct Torch {
  const DLPackExchangeAPI* exchange;
  PyTypeObject *tensor, *parameter;
  PyObject *grad, *version, *requires_grad, *is_neg;  // attributes of the type, read without a look-up by name
  PyObject* step;                                     // the string
  DirectUpdateEntry update;
};
Torch torch{};

// Objects that a call must not lose while other threads of Python run.
class Held {
 public:
  ~Held() {
    for (PyObject* object : objects_) Py_DECREF(object);
  }
  void reserve(size_t count) { objects_.reserve(count); }
  PyObject* own(PyObject* object) {
    objects_.push_back(object);
    return object;
  }
  void borrow(PyObject* object) { own(Py_NewRef(object)); }

 private:
  std::vector<PyObject*> objects_;
};

// An attribute of a tensor: a new reference, or null, without an exception.
PyObject* read(PyObject* attribute, PyObject* tensor) {
  PyObject* value = Py_TYPE(attribute)->tp_descr_get(attribute, tensor, reinterpret_cast<PyObject*>(Py_TYPE(tensor)));
  if (value == nullptr) PyErr_Clear();
  return value;
}

bool is(PyObject* value, PyObject* expected) {
  Py_XDECREF(value);
  return value == expected;
}

bool read_version(PyObject* tensor, long long& version) {
  PyObject* value = read(torch.version, tensor);
  if (value == nullptr) return false;
  version = PyLong_AsLongLong(value);
  Py_DECREF(value);
  return true;
}

bool is_tensor(PyObject* object) { return Py_TYPE(object) == torch.tensor || Py_TYPE(object) == torch.parameter; }

bool is_negated(PyObject* tensor) {
  PyObject* value = PyObject_CallOneArg(torch.is_neg, tensor);
  if (value == nullptr) PyErr_Clear();
  return !is(value, Py_False);
}

bool dtype_of(DLDataType type, PlainTensor::Dtype& dtype) {
  using Dtype = PlainTensor::Dtype;
  if (type.lanes != 1 || (type.code != kDLFloat && type.code != kDLBfloat)) return false;
  if (type.code == kDLBfloat) {
    dtype = Dtype::bf16;
    return type.bits == 16;
  }
  dtype = type.bits == 64 ? Dtype::f64 : type.bits == 32 ? Dtype::f32 : Dtype::f16;
  return type.bits == 64 || type.bits == 32 || type.bits == 16;
}

bool describe(PyObject* object, DLTensor& out) {
  if (!is_tensor(object)) return false;
  if (torch.exchange->dltensor_from_py_object_no_sync(object, &out) == 0) return true;
  PyErr_Clear();  // no memory of its own, or sparse
  return false;
}

// Whether each dimension steps over the ones after it, and no view could have made it do so by chance.
bool is_in_order(const DLTensor& t) {
  int64_t stride = 1;
  for (int32_t d = t.ndim - 1; d >= 0; --d) {
    if (t.strides[d] != stride) return false;
    stride *= t.shape[d];
  }
  return t.ndim > 0;
}

// A dense tensor of torch's own types on the CPU, whose memory holds its values: not the negated view of other memory,
// which is the imaginary part of a conjugated tensor, of every second element.
bool view(PyObject* object, std::vector<PlainTensor>& views) {
  DLTensor t;
  PlainTensor::Dtype dtype;
  if (!describe(object, t) || t.device.device_type != kDLCPU || !dtype_of(t.dtype, dtype) ||
      (t.ndim > 0 && t.strides == nullptr) || (!is_in_order(t) && is_negated(object))) {
    return false;
  }
  views.push_back({static_cast<char*>(t.data) + t.byte_offset, dtype, t.ndim, t.shape, t.strides});
  return true;
}

bool is_list_of(PyObject* object, Py_ssize_t count) {
  return PyList_CheckExact(object) && PyList_GET_SIZE(object) == count;
}

bool read_numbers(PyObject* list, std::vector<double>& numbers) {
  if (!PyList_CheckExact(list)) return false;
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(list); ++i) {
    PyObject* number = PyList_GET_ITEM(list, i);
    if (!PyFloat_CheckExact(number)) return false;
    numbers.push_back(PyFloat_AS_DOUBLE(number));
  }
  return true;
}

bool read_text(PyObject* object, std::string& text) {
  if (!PyUnicode_CheckExact(object)) return false;
  Py_ssize_t length = 0;
  const char* data = PyUnicode_AsUTF8AndSize(object, &length);
  if (data == nullptr) {
    PyErr_Clear();
    return false;
  }
  text.assign(data, static_cast<size_t>(length));
  return true;
}

// The arguments of `step`, in order.
enum Argument : Py_ssize_t {
  kParams,    // the group's list of tensors
  kMembers,   // the same tensors in the order of what follows
  kKeys,      // their ids
  kPlaces,    // and places
  kApplied,   // a dict, whose keys are the ids of all tensors that are perturbed
  kVersions,  // how the last step left them
  kAddresses,
  kClean,   // their clean weights
  kState,   // the optimizer's, a dict in the order of the tensors
  kNames,   // a tuple of what it has of each: the rule's buffers
  kCounts,  // whether it has the number of the step too
  kRule,
  kNumbers,
  kGenerator,
  kDraw,
  kNoiseStd,
  kDistribution,
  kScale,
  kArguments
};

class Step {
 public:
  explicit Step(PyObject* const* args) : args_(args) {}

  // Whether every tensor is as an ordinary step expects it.
  bool gather() {
    PyObject *params = args_[kParams], *names = args_[kNames];
    if (torch.update == nullptr || !PyList_CheckExact(params) || !PyTuple_CheckExact(names)) return false;
    count_ = PyList_GET_SIZE(params);
    for (const Argument list : {kMembers, kKeys, kPlaces, kVersions, kAddresses, kClean}) {
      if (!is_list_of(args_[list], count_)) return false;
    }
    if (count_ == 0 || !PyDict_Check(args_[kApplied]) || PyDict_GET_SIZE(args_[kApplied]) != count_) return false;
    counts_ = args_[kCounts] == Py_True;
    const auto size = static_cast<size_t>(count_), kept = static_cast<size_t>(PyTuple_GET_SIZE(names));
    held_.reserve((4 + kept) * size);
    for (auto* views : {&call_.params, &call_.clean, &call_.grads}) views->reserve(size);
    call_.buffers.reserve(kept * size);
    for (Py_ssize_t i = 0; i < count_; ++i) {
      if (!gather_tensor(i)) return false;
    }
    return gather_state() && gather_options();
  }

  bool run() {
    bool done = false;
    Py_BEGIN_ALLOW_THREADS;
    done = torch.update(call_);
    Py_END_ALLOW_THREADS;
    return done;
  }

  // The number of the step in the state of each tensor. False with an exception.
  bool count_steps() {
    for (size_t i = 0; i < entries_.size(); ++i) {
      PyObject* step = PyLong_FromLongLong((*call_.steps)[i]);
      const bool set = step != nullptr && PyDict_SetItem(entries_[i], torch.step, step) == 0;
      Py_XDECREF(step);
      if (!set) return false;
    }
    return true;
  }

 private:
  bool gather_tensor(Py_ssize_t i) {
    PyObject* param = PyList_GET_ITEM(args_[kParams], i);
    if (param != PyList_GET_ITEM(args_[kMembers], i) || !view(param, call_.params)) return false;
    held_.borrow(param);
    if (PyDict_GetItemWithError(args_[kApplied], PyList_GET_ITEM(args_[kKeys], i)) == nullptr) {
      PyErr_Clear();
      return false;
    }
    long long version = 0;
    if (!read_version(param, version) || version != PyLong_AsLongLong(PyList_GET_ITEM(args_[kVersions], i)) ||
        call_.params.back().data != PyLong_AsVoidPtr(PyList_GET_ITEM(args_[kAddresses], i)) ||
        !is(read(torch.requires_grad, param), Py_True)) {
      return false;
    }
    PyObject* grad = read(torch.grad, param);
    if (grad == nullptr) return false;
    held_.own(grad);
    if (grad == Py_None || !view(grad, call_.grads) || is_negated(grad)) return false;
    PyObject* clean = PyList_GET_ITEM(args_[kClean], i);
    if (!view(clean, call_.clean)) return false;
    held_.borrow(clean);
    call_.places.push_back(PyLong_AsLongLong(PyList_GET_ITEM(args_[kPlaces], i)));
    return true;
  }

  bool gather_state() {
    PyObject* names = args_[kNames];
    const Py_ssize_t kept = PyTuple_GET_SIZE(names);
    if (kept == 0 && !counts_) return true;
    PyObject* state = args_[kState];
    if (!PyDict_Check(state) || PyDict_GET_SIZE(state) != count_) return false;
    entries_.reserve(static_cast<size_t>(count_));
    Py_ssize_t position = 0;
    PyObject *key = nullptr, *entry = nullptr;
    for (Py_ssize_t i = 0; PyDict_Next(state, &position, &key, &entry); ++i) {
      if (key != PyList_GET_ITEM(args_[kParams], i) || !PyDict_CheckExact(entry)) return false;
      held_.borrow(entry);
      entries_.push_back(entry);
    }
    for (Py_ssize_t b = 0; b < kept; ++b) {
      for (PyObject* one : entries_) {
        PyObject* buffer = PyDict_GetItemWithError(one, PyTuple_GET_ITEM(names, b));
        if (buffer == nullptr || !view(buffer, call_.buffers)) {
          PyErr_Clear();
          return false;
        }
        held_.borrow(buffer);
      }
    }
    if (!counts_) {
      entries_.clear();
      return true;
    }
    call_.steps.emplace();
    call_.steps->reserve(entries_.size());
    for (PyObject* one : entries_) {
      PyObject* step = PyDict_GetItemWithError(one, torch.step);
      if (step == nullptr || !PyLong_CheckExact(step)) {
        PyErr_Clear();
        return false;
      }
      call_.steps->push_back(PyLong_AsLongLong(step) + 1);
    }
    return true;
  }

  bool gather_options() {
    DLTensor generator;
    if (!describe(args_[kGenerator], generator) || generator.device.device_type != kDLCPU ||
        generator.dtype.code != kDLInt || generator.dtype.bits != 64 || generator.ndim != 1 ||
        generator.shape[0] != 2) {
      return false;
    }
    const auto* memory = static_cast<const int64_t*>(generator.data);
    call_.generator[0] = memory[0];
    call_.generator[1] = memory[1];
    if (!PyLong_CheckExact(args_[kDraw]) || !PyFloat_CheckExact(args_[kNoiseStd])) return false;
    call_.draw_offset = PyLong_AsLongLong(args_[kDraw]);
    call_.noise_std = PyFloat_AS_DOUBLE(args_[kNoiseStd]);
    if (PyErr_Occurred() != nullptr) {  // a number above 64 bits, here or in a list
      PyErr_Clear();
      return false;
    }
    return read_text(args_[kRule], call_.rule) && read_text(args_[kDistribution], call_.distribution) &&
           read_text(args_[kScale], call_.scale) && read_numbers(args_[kNumbers], call_.numbers);
  }

  PyObject* const* args_;
  Py_ssize_t count_ = 0;
  bool counts_ = false;
  DirectUpdate call_{};
  std::vector<PyObject*> entries_;
  Held held_;
};

PyObject* step(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (count != kArguments) {
    PyErr_Format(PyExc_TypeError, "step() got %zd arguments; expected %zd.", count,
                 static_cast<Py_ssize_t>(kArguments));
    return nullptr;
  }
  Step step(args);
  if (!step.gather() || !step.run()) Py_RETURN_FALSE;
  if (!step.count_steps()) return nullptr;
  Py_RETURN_TRUE;
}

// Of each tensor of a list its version.
PyObject* versions(PyObject*, PyObject* list) {
  if (!PyList_CheckExact(list)) {
    PyErr_SetString(PyExc_TypeError, "versions() expects a list.");
    return nullptr;
  }
  const Py_ssize_t count = PyList_GET_SIZE(list);
  PyObject* read = PyList_New(count);
  for (Py_ssize_t i = 0; read != nullptr && i < count; ++i) {
    PyObject* tensor = PyList_GET_ITEM(list, i);
    PyObject* version =
        is_tensor(tensor)
            ? Py_TYPE(torch.version)->tp_descr_get(torch.version, tensor, reinterpret_cast<PyObject*>(Py_TYPE(tensor)))
            : PyObject_GetAttrString(tensor, "_version");
    if (version == nullptr) {
      Py_CLEAR(read);
      break;
    }
    PyList_SET_ITEM(read, i, version);
  }
  return read;
}

PyMethodDef methods[] = {
    {"step", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(step)), METH_FASTCALL,
     "Updates and perturbs anew; False, and nothing written, where anything is out of the ordinary."},
    {"versions", versions, METH_O, "The version of each tensor of a list."},
    {nullptr, nullptr, 0, nullptr}};

// Whether direct calls can be made with this PyTorch and this library of operators.
bool bind(py::object tensor, py::object parameter, const std::string& library) {
  if (!py::hasattr(tensor, "__dlpack_c_exchange_api__")) return false;
  const py::object capsule = tensor.attr("__dlpack_c_exchange_api__");
  if (!PyCapsule_IsValid(capsule.ptr(), "dlpack_exchange_api")) return false;
  const auto* header =
      static_cast<const DLPackExchangeAPIHeader*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  while (header != nullptr && header->version.major > DLPACK_MAJOR_VERSION) header = header->prev_api;
  if (header == nullptr || header->version.major != DLPACK_MAJOR_VERSION) return false;
  torch.exchange = reinterpret_cast<const DLPackExchangeAPI*>(header);
  if (torch.exchange->dltensor_from_py_object_no_sync == nullptr) return false;
  torch.tensor = reinterpret_cast<PyTypeObject*>(tensor.inc_ref().ptr());
  torch.parameter = reinterpret_cast<PyTypeObject*>(parameter.inc_ref().ptr());
  for (const auto& [name, attribute] : {std::pair{"grad", &torch.grad}, std::pair{"_version", &torch.version},
                                        std::pair{"requires_grad", &torch.requires_grad}}) {
    *attribute = py::object(tensor.attr(name)).release().ptr();
    if (Py_TYPE(*attribute)->tp_descr_get == nullptr) return false;
  }
  torch.is_neg = py::object(tensor.attr("is_neg")).release().ptr();
  torch.step = PyUnicode_InternFromString("step");
  void* const handle = dlopen(library.c_str(), RTLD_NOLOAD | RTLD_LAZY);
  if (handle == nullptr) return false;
  torch.update = reinterpret_cast<DirectUpdateEntry>(dlsym(handle, "torch_ssam_update_and_perturb"));
  return torch.update != nullptr;
}

}  // namespace

void bind_direct(py::module_& m) {
  py::module_ direct = m.def_submodule("direct", "Operators without the dispatcher; use torch_ssam.ops.direct.");
  direct.def("bind", &bind);
  if (PyModule_AddFunctions(direct.ptr(), methods) != 0) throw py::error_already_set();
}

}  // namespace torch_ssam::python
