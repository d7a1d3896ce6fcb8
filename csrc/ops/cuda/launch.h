// Launches the bodies on a GPU: the one __global__ wrapper, the current stream, the device guard, the launch check, and
// what turns checked arguments (csrc/ops) into kernel parameters. Nothing here synchronises or copies to the device, so
// a CUDA graph can capture every operator. Tests: test_cuda.py on a GPU; the bodies: test_cuda_on_host.cpp.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include "../backend.h"
#include "shards.h"

namespace torch_ssam::cuda {

// 4 x 256 threads leave 64 registers each. A body may say that it needs more: 3 leave 80.
template <typename Body>
constexpr int blocks_per_processor() {
  if constexpr (requires { Body::kBlocksPerProcessor; }) return Body::kBlocksPerProcessor;
  return 4;
}

template <typename Body>
concept HasPhases = requires { typename Body::Shared; };

// A body with phases runs them over its tiles, the block of threads together, with a barrier after each.
template <typename Body>
__global__ void __launch_bounds__(kThreads, blocks_per_processor<Body>())
    kernel(const __grid_constant__ typename Body::Params params) {
  const Thread at{static_cast<int64_t>(blockIdx.x), static_cast<int>(threadIdx.x)};
  if constexpr (HasPhases<Body>) {
    __shared__ typename Body::Shared shared;
    const int64_t tiles = Body::tiles(params);
    for (int64_t tile = 0; tile < tiles; ++tile) {
      Body::first_phase(params, at, tile, shared);
      __syncthreads();
      Body::second_phase(params, at, tile, shared);
      __syncthreads();
    }
  } else {
    Body::run(params, at);
  }
}

// The device of a call and its current stream, for as long as the call lasts.
class Launcher {
 public:
  explicit Launcher(const Tensor& on_device) : guard_(on_device.get_device_index()) {
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(on_device.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

  template <typename Body>
  void run(const typename Body::Params& params, int64_t blocks) const {
    static_assert(sizeof(params) <= kArgumentBytes, "more than a kernel takes as arguments");
    if (blocks <= 0) return;
    TORCH_SSAM_CHECK(blocks <= 0x7fffffff, "a launch of ", blocks,
                     " blocks is beyond what CUDA takes; split the call.");
    kernel<Body><<<static_cast<unsigned>(blocks), kThreads, 0, stream_>>>(params);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }

  // Enough blocks for `threads` threads.
  template <typename Body>
  void run_threads(const typename Body::Params& params, int64_t threads) const {
    run<Body>(params, (threads + kThreads - 1) / kThreads);
  }

  // Body<kCount> over a list, in as few launches as its tables allow.
  template <template <int> class Body, int kCount, typename TensorType, typename Settings>
  void run_list(const std::vector<TensorType>& tensors, const Settings& settings) const {
    for_each_launch<Body, kCount>(
        tensors, [&]<typename Chosen>(const auto& table, int64_t blocks) { run<Chosen>({settings, table}, blocks); });
  }

  // A Body that is the same for all alignments.
  template <typename Body, typename TensorType, typename Settings>
  void run_table(const std::vector<TensorType>& tensors, const Settings& settings) const {
    for_each_table<Body>(tensors, [&](const auto& table, int64_t blocks) { run<Body>({settings, table}, blocks); });
  }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

template <typename A, typename B>
struct Types {
  using master_t = A;
  using model_t = B;
};

// body(Types<master_t, model_t>) for the pair of dtypes.
template <typename Body>
void with_types(DtypePair pair, const Body& body) {
  switch (pair) {
    case DtypePair::f64:
      return body(Types<double, double>{});
    case DtypePair::f32:
      return body(Types<float, float>{});
    case DtypePair::bf16:
      return body(Types<math::bfloat16_t, math::bfloat16_t>{});
    case DtypePair::f16:
      return body(Types<math::float16_t, math::float16_t>{});
    case DtypePair::f32_bf16:
      return body(Types<float, math::bfloat16_t>{});
    default:
      return body(Types<float, math::float16_t>{});
  }
}

// The tensors of a call that have one pair of dtypes; an operand that the operator lacks is an empty list. `numbers`,
// `more` and `shards`, if there are any, are of all tensors.
template <size_t kOperands, typename More = Nothing>
std::vector<ListTensor<static_cast<int>(kOperands), More>> list_tensors(
    const std::array<const TensorViews*, kOperands>& operands, const std::vector<size_t>& chosen,
    const std::vector<int64_t>* numbers, const std::vector<More>* more = nullptr, const Shards* shards = nullptr) {
  std::vector<ListTensor<static_cast<int>(kOperands), More>> list;
  list.reserve(chosen.size());
  for (const size_t t : chosen) {
    ListTensor<static_cast<int>(kOperands), More> tensor;
    std::array<int64_t, kOperands> bytes{};
    if (more != nullptr) static_cast<More&>(tensor) = (*more)[t];
    for (size_t k = 0; k < kOperands; ++k) {
      if (operands[k]->empty()) continue;
      const TensorView& view = (*operands[k])[t];
      tensor.data[k] = view.data;
      bytes[k] = static_cast<int64_t>(bytes_of(view.dtype));
      tensor.strides[k] = view.contiguous ? nullptr : view.strides;
      tensor.sizes = view.sizes;
      tensor.dim = view.dim;
      tensor.numel = view.numel;
    }
    tensor.number = numbers == nullptr ? 0 : static_cast<uint32_t>((*numbers)[t]);
    if (shards != nullptr && !shards->empty()) place_in_whole(tensor, (*shards)[t], bytes);
    list.push_back(tensor);
  }
  return list;
}

// body(pair, indices) for every pair of dtypes in the lists: one launch serves one pair.
template <typename Body>
void for_each_pair(const TensorViews& masters, const TensorViews& models, const Body& body) {
  std::array<std::vector<size_t>, static_cast<size_t>(math::kDtypePairs)> groups;
  for (size_t t = 0; t < masters.size(); ++t) {
    groups[static_cast<size_t>(dtype_pair(masters[t].dtype, models[t].dtype))].push_back(t);
  }
  for (size_t pair = 0; pair < groups.size(); ++pair) {
    if (!groups[pair].empty()) body(static_cast<DtypePair>(pair), groups[pair]);
  }
}

inline NoiseSettings noise_settings(const SharedNoise& noise, const int64_t* generator) {
  return {generator, noise.draw_offset, noise.sample, noise.distribution, noise.signed_std(), noise.alone};
}

}  // namespace torch_ssam::cuda
