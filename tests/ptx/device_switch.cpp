// Which backend the operators have for tensors on the CPU: torch_ssam_ptx_device(1) gives them the CUDA library's,
// linked with translated kernels and runtime.cpp, torch_ssam_ptx_device(0) their own. Used by
// tests/ptx/emulated_cuda.py, which so runs tests/python/test_cuda.py without a GPU.
#include "ops/operators.h"

namespace torch_ssam {
namespace {

const Backend& table_of(Device device) {
  static const Backend none{};
  const Backend* const table = register_backend(device, none).replaced;
  register_backend(device, *table);
  return *table;
}

}  // namespace
}  // namespace torch_ssam

extern "C" __attribute__((visibility("default"))) void torch_ssam_ptx_device(int cuda) {
  using torch_ssam::Device;
  static const torch_ssam::Backend& cpu_table = torch_ssam::table_of(Device::cpu);
  static const torch_ssam::Backend& cuda_table = torch_ssam::table_of(Device::cuda);
  torch_ssam::register_backend(Device::cpu, cuda != 0 ? cuda_table : cpu_table);
}
