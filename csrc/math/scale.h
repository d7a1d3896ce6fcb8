// Noise that knows the geometry: by what the standard noise of an element is multiplied before noise_std.
//   rows      |w_r|_2 / sqrt(1 + s F_r): one number a row, a row being a filter (dimension 0) or the whole tensor.
//             s = 0: LPF-SGD (arXiv 2201.08025) and RWP; else ARWP (arXiv 2404.00357), F <- beta F + sum of g^2.
//             Or max_r |w|, the row's range, as analog training has it (aihwkit).
//   element   |w| + 0.01: the element-wise operator of ASAM (arXiv 2102.11600) on the standard deviation.
// Sums are double, in the order of reduce.h; row scales float, like the noise; element scales are in opmath_t.
// Tests: test_math.cpp, test_kernels.cpp, test_cuda_scale_on_host.cpp, test_ops_scale.py.
#pragma once

#include "noise.h"

namespace torch_ssam::math {

enum class Scale : int { isotropic = 0, rows = 1, element = 2 };

// What a row's scale is made of.
enum class RowScale : int { norm = 0, absmax = 1 };

TORCH_SSAM_BODY float row_scale(double squared_norm, double fisher, double fisher_factor) {
  return static_cast<float>(square_root(squared_norm) / square_root(fused_multiply_add(fisher_factor, fisher, 1.0)));
}

TORCH_SSAM_BODY float row_range(double largest) { return static_cast<float>(largest); }

TORCH_SSAM_BODY float row_fisher(float fisher, double squared_gradient, double decay) {
  return static_cast<float>(fused_multiply_add(decay, static_cast<double>(fisher), squared_gradient));
}

TORCH_SSAM_BODY float element_scale(float clean) { return __builtin_fabsf(clean) + 0.01F; }
TORCH_SSAM_BODY double element_scale(double clean) { return __builtin_fabs(clean) + 0.01; }

TORCH_SSAM_BODY float scale_noise(float noise, float scale) { return noise * scale; }
TORCH_SSAM_BODY double scale_noise(float noise, double scale) { return static_cast<double>(noise) * scale; }

}  // namespace torch_ssam::math
