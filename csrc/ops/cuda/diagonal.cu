// CUDA kernels of the operators in ../diagonal.h. Bodies: diagonal_body.h; launches: launch.h.
// Buffers come from PyTorch's allocator on the current stream and go back to it when the call returns, as its own
// operators do, so that nothing waits.
#include "../diagonal.h"
#include "diagonal_body.h"
#include "launch.h"

namespace torch_ssam::cuda {
namespace {

struct Problem {
  DiagonalShape shape;
  DtypePair pair;
  Tensor input, weight;  // contiguous
  LayerSettings layers;
};

Problem make_problem(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& generator,
                     double noise_std, const std::string& distribution) {
  const DiagonalShape shape = check_diagonal(input, weight, generator);
  const NoiseOptions noise = check_noise(noise_std, distribution, 0, false, 0);
  Problem p{shape,
            dtype_pair(weight.scalar_type(), input.scalar_type()),
            torch::stable::contiguous(input),
            torch::stable::contiguous(weight),
            {}};
  const bool noisy = generator.has_value() && noise_std > 0;
  p.layers = {p.weight.data_ptr(), shape.depth, shape.features, noisy,
              noisy ? noise_settings(noise, *generator) : NoiseSettings{}};
  return p;
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
Tensor make_product(const Launcher& launcher, const Problem& p) {
  using math_t = math::opmath_t<master_t>;
  Tensor product = buffer_like<math_t>(p.weight, p.shape.features);
  launcher.run_threads<ProductBody<master_t>>({p.layers, data_of<math_t>(product)},
                                              threads_for_coordinates(p.shape.features));
  return product;
}

template <typename master_t, typename model_t, int kCount>
void multiply(const Launcher& launcher, const Problem& p, const Tensor& product, const Tensor& output) {
  const MultiplyGrid grid = multiply_grid(p.shape.rows, p.shape.features, kCount);
  launcher.run<MultiplyBody<master_t, model_t, kCount>>(
      {data_of<math::opmath_t<master_t>>(product), data_of<model_t>(p.input), data_of<model_t>(output), p.shape.rows,
       grid},
      grid.blocks);
}

template <typename master_t, typename model_t, int kCount>
void readout_chunks(const Launcher& launcher, const Problem& p, const Tensor& product, const Tensor& partial,
                    int64_t chunks) {
  using Body = ReadoutBody<master_t, model_t, kCount>;
  using math_t = math::opmath_t<master_t>;
  launcher.run<Body>({data_of<math_t>(product), data_of<model_t>(p.input), data_of<math_t>(partial), p.shape.rows,
                      p.shape.features, chunks},
                     (p.shape.rows * chunks + Body::kTasks - 1) / Body::kTasks);
}

Tensor diagonal_cuda(Tensor input, Tensor weight, std::optional<Tensor> generator, double noise_std,
                     StringArgument distribution, bool readout) {
  const Problem p = make_problem(input, weight, generator, noise_std, take(distribution));
  const auto [depth, features, rows] = p.shape;
  const auto sizes = input.sizes();
  std::vector<int64_t> out_sizes(sizes.begin(), sizes.end());
  if (readout) out_sizes.pop_back();
  Tensor output = features == 0 && readout ? torch::stable::new_zeros(input, out_sizes)
                                           : torch::stable::new_empty(input, out_sizes);
  if (features == 0 || output.numel() == 0) return output;
  const Launcher launcher(weight);
  with_types(p.pair, [&]<typename T>(T) {
    using master_t = typename T::master_t;
    using model_t = typename T::model_t;
    using math_t = math::opmath_t<master_t>;
    constexpr int kCount = kLanesOwned<model_t>;
    const Tensor product = make_product<master_t>(launcher, p);
    const bool wide = features % kCount == 0 && aligned(p.input) && aligned(output) && aligned(product);
    if (!readout) {
      return wide ? multiply<master_t, model_t, kCount>(launcher, p, product, output)
                  : multiply<master_t, model_t, 1>(launcher, p, product, output);
    }
    const int64_t chunks = (features + math::kReadoutChunk - 1) / math::kReadoutChunk;
    const Tensor partial = buffer_like<math_t>(weight, rows * chunks);
    const bool wide_input = features % kCount == 0 && aligned(p.input) && aligned(product);
    wide_input ? readout_chunks<master_t, model_t, kCount>(launcher, p, product, partial, chunks)
               : readout_chunks<master_t, model_t, 1>(launcher, p, product, partial, chunks);
    launcher.run_threads<CombineBody<master_t, model_t>>(
        {data_of<math_t>(partial), data_of<model_t>(output), rows, chunks}, rows);
  });
  return output;
}

std::tuple<Tensor, Tensor> diagonal_backward_cuda(Tensor grad_output, Tensor input, Tensor weight,
                                                  std::optional<Tensor> generator, double noise_std,
                                                  StringArgument distribution, bool readout, bool needs_input,
                                                  bool needs_weight) {
  const Problem p = make_problem(input, weight, generator, noise_std, take(distribution));
  check_diagonal_grad(grad_output, input, readout);
  const auto [depth, features, rows] = p.shape;
  const std::vector<int64_t> none{0};
  const auto sizes = input.sizes();
  const std::vector<int64_t> weight_sizes{depth, features};
  Tensor grad_input =
      torch::stable::new_empty(input, needs_input ? sizes : torch::headeronly::IntHeaderOnlyArrayRef(none));
  Tensor grad_weight = needs_weight && rows == 0 ? torch::stable::new_zeros(weight, weight_sizes)
                                                 : torch::stable::new_empty(weight, needs_weight ? weight_sizes : none);
  if (features == 0 || rows == 0 || !(needs_input || needs_weight)) return {grad_input, grad_weight};
  const Launcher launcher(weight);
  const Tensor grad = torch::stable::contiguous(grad_output);
  const int64_t segments = (rows + math::kBatchSegment - 1) / math::kBatchSegment;
  with_types(p.pair, [&]<typename T>(T) {
    using master_t = typename T::master_t;
    using model_t = typename T::model_t;
    using math_t = math::opmath_t<master_t>;
    constexpr int kCount = kLanesOwned<model_t>;
    std::optional<Tensor> product;
    if (needs_input) product = make_product<master_t>(launcher, p);
    const Tensor sums = buffer_like<math_t>(weight, needs_weight ? segments * features : 0);
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
    const Tensor suffix = buffer_like<math_t>(weight, depth * features);
    launcher.run_threads<FinishBody<master_t>>(
        {p.layers, data_of<math_t>(sums), segments, data_of<math_t>(suffix), data_of<master_t>(grad_weight)},
        threads_for_coordinates(features));
  });
  return {grad_input, grad_weight};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torch_ssam, CUDA, m) {
  m.impl("diagonal", TORCH_BOX(&diagonal_cuda));
  m.impl("diagonal_backward", TORCH_BOX(&diagonal_backward_cuda));
}

}  // namespace torch_ssam::cuda
