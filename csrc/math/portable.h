// What lets one body serve g++, clang++ and nvcc: the function qualifier and the few intrinsics that the bodies use.
// Every body has internal linkage. The kernels are compiled several times for different instruction sets, and an
// inline function with external linkage would let the linker keep the AVX-512 copy for a machine that lacks it.
// Tests: tests/cpp/test_math.cpp; tests/cpp/test_linkage.cpp looks at the symbols of the compiled variants.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define TORCH_SSAM_BODY static __host__ __device__ __forceinline__
#elif defined(__GNUC__)
#define TORCH_SSAM_BODY static inline __attribute__((always_inline))
#else
#define TORCH_SSAM_BODY static inline
#endif

#if defined(__CUDACC__)
#define TORCH_SSAM_UNROLL _Pragma("unroll")
#elif defined(__clang__)
#define TORCH_SSAM_UNROLL _Pragma("clang loop unroll(full)")
#elif defined(__GNUC__)
#define TORCH_SSAM_UNROLL _Pragma("GCC unroll 64")
#else
#define TORCH_SSAM_UNROLL
#endif

namespace torch_ssam::math {

// Correctly rounded a*b + c. Without fma instructions this is a library call: slow, and the same bits.
TORCH_SSAM_BODY float fused_multiply_add(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
TORCH_SSAM_BODY double fused_multiply_add(double a, double b, double c) { return __builtin_fma(a, b, c); }

TORCH_SSAM_BODY float square_root(float a) { return __builtin_sqrtf(a); }
TORCH_SSAM_BODY double square_root(double a) { return __builtin_sqrt(a); }

TORCH_SSAM_BODY uint32_t float_to_bits(float value) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(value);
#else
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof(bits));
  return bits;
#endif
}

TORCH_SSAM_BODY float bits_to_float(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  float value;
  __builtin_memcpy(&value, &bits, sizeof(value));
  return value;
#endif
}

// |value| as an integer, which has the order of the magnitudes.
TORCH_SSAM_BODY int32_t magnitude_bits(float value) { return static_cast<int32_t>(float_to_bits(value) & 0x7fffffffU); }
TORCH_SSAM_BODY int64_t magnitude_bits(double value) {
#if defined(__CUDA_ARCH__)
  return __double_as_longlong(value) & 0x7fffffffffffffffLL;
#else
  int64_t bits;
  __builtin_memcpy(&bits, &value, sizeof(bits));
  return bits & 0x7fffffffffffffffLL;
#endif
}
TORCH_SSAM_BODY double bits_to_double(int64_t bits) {
#if defined(__CUDA_ARCH__)
  return __longlong_as_double(bits);
#else
  double value;
  __builtin_memcpy(&value, &bits, sizeof(value));
  return value;
#endif
}

// The word as a signed integer: as a float, rounded to nearest, and shifted right with its sign.
TORCH_SSAM_BODY float signed_to_float(uint32_t word) { return static_cast<float>(static_cast<int32_t>(word)); }
TORCH_SSAM_BODY uint32_t shift_right_signed(uint32_t word, int count) {
  return static_cast<uint32_t>(static_cast<int32_t>(word) >> count);
}

}  // namespace torch_ssam::math
