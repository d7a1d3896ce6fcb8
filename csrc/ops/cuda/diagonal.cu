// CUDA kernels of the operators in ../diagonal.cpp. Bodies: diagonal_body.h; launches: launch.h.
// Buffers come from PyTorch's allocator on the current stream and go back to it when the call returns, as its own
// operators do, so that nothing waits.
#include "diagonal_body.h"
#include "launch.h"
#include "launches.h"

namespace torch_ssam::cuda {
namespace {

LayerSettings layers_of(const DiagonalCall& call) {
  const bool noisy = call.generator != nullptr;
  return {call.weight.data_ptr(), call.shape.depth, call.shape.features, noisy,
          noisy ? noise_settings(call.noise, call.generator) : NoiseSettings{}};
}

template <typename T>
T* data_of(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

bool aligned(const Tensor& tensor) { return reinterpret_cast<uintptr_t>(tensor.data_ptr()) % kVectorBytes == 0; }

int64_t threads_for_coordinates(int64_t features) {
  return (features + math::kGaussianBlock - 1) / math::kGaussianBlock * math::kLanes;
}

// A buffer of opmath numbers.
template <typename math_t>
Tensor buffer_like(const Tensor& tensor, int64_t numel) {
  return torch::stable::new_empty(tensor, {numel},
                                  std::is_same_v<math_t, double> ? ScalarType::Double : ScalarType::Float);
}

template <typename master_t>
Tensor make_product(const Launcher& launcher, const DiagonalCall& p) {
  using math_t = math::opmath_t<master_t>;
  Tensor product = buffer_like<math_t>(p.weight, p.shape.features);
  launcher.run_threads<ProductBody<master_t>>({layers_of(p), data_of<math_t>(product)},
                                              threads_for_coordinates(p.shape.features));
  return product;
}

template <typename master_t, typename model_t, int kCount>
void multiply(const Launcher& launcher, const DiagonalCall& p, const Tensor& product, const Tensor& output) {
  const MultiplyGrid grid = multiply_grid(p.shape.rows, p.shape.features, kCount);
  launcher.run<MultiplyBody<master_t, model_t, kCount>>(
      {data_of<math::opmath_t<master_t>>(product), data_of<model_t>(p.input), data_of<model_t>(output), p.shape.rows,
       grid},
      grid.blocks);
}

template <typename master_t, typename model_t, int kCount>
void readout_chunks(const Launcher& launcher, const DiagonalCall& p, const Tensor& product, const Tensor& partial,
                    int64_t chunks) {
  using Body = ReadoutBody<master_t, model_t, kCount>;
  using math_t = math::opmath_t<master_t>;
  launcher.run<Body>({data_of<math_t>(product), data_of<model_t>(p.input), data_of<math_t>(partial), p.shape.rows,
                      p.shape.features, chunks},
                     (p.shape.rows * chunks + Body::kTasks - 1) / Body::kTasks);
}

}  // namespace

void diagonal(const DiagonalCall& p, const Tensor& output) {
  const auto [depth, features, rows] = p.shape;
  const Launcher launcher(p.weight);
  with_types(p.pair, [&]<typename T>(T) {
    using master_t = typename T::master_t;
    using model_t = typename T::model_t;
    using math_t = math::opmath_t<master_t>;
    constexpr int kCount = kLanesOwned<model_t>;
    const Tensor product = make_product<master_t>(launcher, p);
    const bool wide = features % kCount == 0 && aligned(p.input) && aligned(output) && aligned(product);
    if (!p.readout) {
      return wide ? multiply<master_t, model_t, kCount>(launcher, p, product, output)
                  : multiply<master_t, model_t, 1>(launcher, p, product, output);
    }
    const int64_t chunks = (features + math::kReadoutChunk - 1) / math::kReadoutChunk;
    const Tensor partial = buffer_like<math_t>(p.weight, rows * chunks);
    const bool wide_input = features % kCount == 0 && aligned(p.input) && aligned(product);
    wide_input ? readout_chunks<master_t, model_t, kCount>(launcher, p, product, partial, chunks)
               : readout_chunks<master_t, model_t, 1>(launcher, p, product, partial, chunks);
    launcher.run_threads<CombineBody<master_t, model_t>>(
        {data_of<math_t>(partial), data_of<model_t>(output), rows, chunks}, rows);
  });
}

void diagonal_backward(const DiagonalBackwardCall& call, const Tensor& grad_input, const Tensor& grad_weight) {
  const DiagonalCall& p = call.forward;
  const bool readout = p.readout, needs_input = call.needs_input, needs_weight = call.needs_weight;
  const Tensor& grad = call.grad_output;
  const auto [depth, features, rows] = p.shape;
  const Launcher launcher(p.weight);
  const int64_t segments = (rows + math::kBatchSegment - 1) / math::kBatchSegment;
  with_types(p.pair, [&]<typename T>(T) {
    using master_t = typename T::master_t;
    using model_t = typename T::model_t;
    using math_t = math::opmath_t<master_t>;
    constexpr int kCount = kLanesOwned<model_t>;
    std::optional<Tensor> product;
    if (needs_input) product = make_product<master_t>(launcher, p);
    const Tensor sums = buffer_like<math_t>(p.weight, needs_weight ? segments * features : 0);
    const auto run_rows = [&]<int kOwned>() {
      launcher.run_threads<RowsBody<master_t, model_t, kOwned>>(
          {data_of<model_t>(grad), needs_weight ? data_of<model_t>(p.input) : nullptr,
           needs_input ? data_of<math_t>(*product) : nullptr, needs_input ? data_of<model_t>(grad_input) : nullptr,
           data_of<math_t>(sums), rows, features, readout},
          segments * (features / kOwned));
    };
    const bool wide = features % kCount == 0 && (readout || aligned(grad)) && aligned(p.input) && aligned(grad_input) &&
                      aligned(sums) && (!product || aligned(*product));
    wide ? run_rows.template operator()<kCount>() : run_rows.template operator()<1>();
    if (!needs_weight) return;
    const Tensor suffix = buffer_like<math_t>(p.weight, depth * features);
    launcher.run_threads<FinishBody<master_t>>(
        {layers_of(p), data_of<math_t>(sums), segments, data_of<math_t>(suffix), data_of<master_t>(grad_weight)},
        threads_for_coordinates(features));
  });
}

}  // namespace torch_ssam::cuda
