// An operator's call from Python without the dispatcher, for a step of many tensors: on its way through the stable ABI
// each tensor is boxed, which costs more than the arithmetic of small ones. Checks and loops are the operator's own.
// csrc/python/direct.cpp reads the tensors and makes sure that the call is one that nobody watches; it finds the symbol
// here by its name. No PyTorch in this file. Tests: test_direct.py.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace torch_ssam {

// A dense tensor in the CPU's memory. Sizes and strides belong to the tensor.
struct PlainTensor {
  enum class Dtype { f64, f32, bf16, f16 };
  void* data;
  Dtype dtype;
  int64_t dim;
  const int64_t* sizes;
  const int64_t* strides;
};

// The arguments of update_and_perturb_; `generator` is (seed, draw).
struct DirectUpdate {
  std::vector<PlainTensor> params, clean, grads, buffers;
  std::string rule;
  std::vector<double> numbers;
  int64_t generator[2];
  std::vector<int64_t> places;
  double noise_std;
  std::string distribution, scale;
  int64_t draw_offset;
  std::optional<std::vector<int64_t>> steps;
};

// False, and nothing written, where the operator refuses the call: it is then for the operator to say why.
using DirectUpdateEntry = bool (*)(const DirectUpdate&) noexcept;
extern "C" __attribute__((visibility("default"))) bool torch_ssam_update_and_perturb(const DirectUpdate& call) noexcept;

}  // namespace torch_ssam
