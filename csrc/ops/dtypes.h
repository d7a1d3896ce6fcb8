// PyTorch's dtypes as those that loops and launches are compiled for (csrc/math/storage.h).
#pragma once

#include "../math/storage.h"
#include "tensors.h"

namespace torch_ssam {

using math::Dtype;
using math::DtypePair;

inline size_t bytes_of(ScalarType dtype) {
  return dtype == ScalarType::Double ? 8 : (dtype == ScalarType::Float ? 4 : 2);
}

// Of a dtype that view_parameter lets through.
inline Dtype dtype_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Double:
      return Dtype::f64;
    case ScalarType::Float:
      return Dtype::f32;
    case ScalarType::BFloat16:
      return Dtype::bf16;
    default:
      return Dtype::f16;
  }
}

// Of dtypes that check_pairs lets through.
inline DtypePair dtype_pair(ScalarType master, ScalarType model) {
  if (master == model) return static_cast<DtypePair>(dtype_of(master));
  return model == ScalarType::BFloat16 ? DtypePair::f32_bf16 : DtypePair::f32_f16;
}

// Float clean weights go with 16-bit parameters; else the dtypes are the same. `models` says what the second list is.
inline void check_pairs(const TensorViews& masters, const TensorViews& others, const char* models) {
  for (size_t t = 0; t < masters.size(); ++t) {
    const ScalarType master = masters[t].dtype;
    const ScalarType model = others[t].dtype;
    TORCH_SSAM_CHECK(master == model ||
                         (master == ScalarType::Float && (model == ScalarType::BFloat16 || model == ScalarType::Half)),
                     "no kernel for clean weights of dtype ", dtype_name(master), " with ", models, " of dtype ",
                     dtype_name(model), "; expected the same dtype, or float32 with bfloat16 or float16.");
  }
}

}  // namespace torch_ssam
