// The launch grid of tests/cpp/cuda_host.h over translated kernels: `kernel<Body>` is the symbol of
// csrc/ops/cuda/launch.h's
// __global__ function, which translate.py defines from the PTX that nvcc made of it. With TORCH_SSAM_PTX
// tests/cpp/test_*.cpp walk these in the place of bodies that g++ compiled.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>

#include "launcher.h"

namespace torch_ssam::cuda {

template <typename Body>
__attribute__((weak)) void kernel(const typename Body::Params params);

template <typename Body>
void walk(const typename Body::Params& params, int64_t blocks) {
  if (blocks <= 0) return;
  // Volatile: compilers take it that a function is somewhere. It is one of other arguments.
  void* volatile const translated = reinterpret_cast<void*>(&kernel<Body>);
  const auto run = reinterpret_cast<void (*)(const void*, int64_t, int64_t)>(translated);
  ASSERT_NE(run, nullptr) << "nvcc did not compile " << __PRETTY_FUNCTION__;
  run(&params, sizeof(params), blocks);
}

}  // namespace torch_ssam::cuda
