// A CUDA runtime on the CPU: what nvcc's host code of csrc/ops/cuda and PyTorch's stable ABI ask for, so that the whole
// library, its launches included, runs translated kernels. There is one stream and one device, memory is the host's,
// and nothing is ever under way. Without PyTorch's headers, whose declarations these definitions stand in for. Used by
// device_switch.cpp.
#include <cstddef>
#include <string>
#include <unordered_map>
#include <vector>

#include "launcher.h"

namespace torch_ssam::ptx {
namespace {

struct Dim3 {
  unsigned x, y, z;
};
struct Configuration {
  Dim3 grid, block;
  size_t shared;
  void* stream;
};

std::vector<Configuration> configurations;
i64 launches = 0;

// Kernels by the address of their host function.
std::unordered_map<const void*, std::string>& names() {
  static std::unordered_map<const void*, std::string> all;
  return all;
}

int launch_host_function(const void* function, Dim3 grid, Dim3 block, void** arguments, size_t shared) {
  const auto name = names().find(function);
  if (name == names().end()) fail("a launch of what is no kernel", reinterpret_cast<u64>(function));
  if (block.x != kThreads || block.y != 1 || block.z != 1) fail("a launch of other than 256 threads a block", block.x);
  if (grid.y != 1 || grid.z != 1 || shared != 0) fail("a launch over more than x, or with dynamic shared memory");
  Kernel* const kernel = find_kernel(name->second);
  if (kernel == nullptr) fail(("a kernel that was not translated: " + name->second).c_str());
  launch(*kernel, arguments[0], static_cast<i64>(kernel->parameter_bytes), grid.x);
  ++launches;
  return 0;
}

}  // namespace
}  // namespace torch_ssam::ptx

using torch_ssam::ptx::Configuration;
using torch_ssam::ptx::Dim3;

extern "C" __attribute__((visibility("default"))) int64_t torch_ssam_ptx_launches() {
  return torch_ssam::ptx::launches;
}

extern "C" {

// --- What nvcc's host code calls.
void** __cudaRegisterFatBinary(void*) {
  static void* handle = nullptr;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
char __cudaInitModule(void**) { return 0; }
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, void*, void*, void*, void*, int*) {
  torch_ssam::ptx::names()[host] = name;
}
unsigned __cudaPushCallConfiguration(Dim3 grid, Dim3 block, size_t shared, void* stream) {
  torch_ssam::ptx::configurations.push_back({grid, block, shared, stream});
  return 0;
}
int __cudaPopCallConfiguration(Dim3* grid, Dim3* block, size_t* shared, void** stream) {
  const Configuration last = torch_ssam::ptx::configurations.back();
  torch_ssam::ptx::configurations.pop_back();
  *grid = last.grid;
  *block = last.block;
  *shared = last.shared;
  *stream = last.stream;
  return 0;
}
// CUDA 12 launches by the host function, CUDA 13 by a handle that it asks for once.
int cudaLaunchKernel(const void* function, Dim3 grid, Dim3 block, void** arguments, size_t shared, void*) {
  return torch_ssam::ptx::launch_host_function(function, grid, block, arguments, shared);
}
int __cudaGetKernel(void** kernel, const void* function) {
  *kernel = const_cast<void*>(function);
  return 0;
}
int __cudaLaunchKernel(void* kernel, Dim3 grid, Dim3 block, void** arguments, size_t shared, void*) {
  return torch_ssam::ptx::launch_host_function(kernel, grid, block, arguments, shared);
}
int cudaGetLastError() { return 0; }
const char* cudaGetErrorString(int) { return "no error"; }

// --- What PyTorch's stable ABI has of CUDA.
int aoti_torch_get_current_cuda_stream(int, void** stream) {
  *stream = nullptr;
  return 0;
}
int aoti_torch_create_device_guard(int, void** guard) {
  static int one = 0;
  *guard = &one;
  return 0;
}
int aoti_torch_delete_device_guard(void*) { return 0; }
int aoti_torch_device_guard_set_index(void*, int) { return 0; }
void torch_c10_cuda_free_error_msg(char*) {}
int torch_c10_cuda_check_msg(int error, const char*, const char*, unsigned, bool, char** message) {
  *message = nullptr;
  return error;
}

}  // extern "C"
