// The inner loops over the bodies of csrc/math, compiled once for each instruction set (TORCH_SSAM_VARIANT names it).
// Loops of fixed length over 16 lanes or 64 elements, so that the compiler vectorises them whole. They are in kernels/,
// a header for each operator; here is their table. Nothing may have external linkage but the one function at the end
// (see csrc/math/portable.h), so nothing of the standard library but types. Tests: tests/cpp/test_kernels.cpp,
// tests/cpp/test_linkage.cpp.

#include "kernels.h"

#include "kernels/diagonal.h"
#include "kernels/reduce.h"
#include "kernels/update.h"

#define TORCH_SSAM_CONCAT_(a, b) a##b
#define TORCH_SSAM_CONCAT(a, b) TORCH_SSAM_CONCAT_(a, b)
#define TORCH_SSAM_STRING_(a) #a
#define TORCH_SSAM_STRING(a) TORCH_SSAM_STRING_(a)

namespace torch_ssam::cpu {
namespace {

using math::bfloat16_t;
using math::float16_t;

#define TORCH_SSAM_EACH_PAIR(kernel, ...)                                                \
  {kernel<__VA_ARGS__ double, double>,         kernel<__VA_ARGS__ float, float>,         \
   kernel<__VA_ARGS__ bfloat16_t, bfloat16_t>, kernel<__VA_ARGS__ float16_t, float16_t>, \
   kernel<__VA_ARGS__ float, bfloat16_t>,      kernel<__VA_ARGS__ float, float16_t>}
#define TORCH_SSAM_EACH_DTYPE(kernel, ...) \
  {kernel<__VA_ARGS__ double>, kernel<__VA_ARGS__ float>, kernel<__VA_ARGS__ bfloat16_t>, kernel<__VA_ARGS__ float16_t>}

template <typename Rule>
constexpr UpdateKernels<Rule> kUpdates = {TORCH_SSAM_EACH_PAIR(update, Rule, ),
                                          TORCH_SSAM_EACH_PAIR(update_and_perturb, Rule, )};

template <typename... Rules>
constexpr EachRule<math::RuleList<Rules...>> each_rule(math::RuleList<Rules...>) {
  return {kUpdates<Rules>...};
}

constexpr Kernels kTable = {
    TORCH_SSAM_STRING(TORCH_SSAM_VARIANT),
    TORCH_SSAM_EACH_PAIR(perturb),
    each_rule(math::Rules{}),
    TORCH_SSAM_EACH_PAIR(round),
    TORCH_SSAM_EACH_PAIR(follow),
    stream_copy,
    TORCH_SSAM_EACH_DTYPE(reduce, math::SumOfSquares, ),
    TORCH_SSAM_EACH_DTYPE(reduce, math::LargestMagnitude, ),
    TORCH_SSAM_EACH_DTYPE(scale),
    TORCH_SSAM_EACH_DTYPE(clip),
    TORCH_SSAM_EACH_DTYPE(diagonal_load),
    TORCH_SSAM_EACH_PAIR(diagonal_multiply),
    TORCH_SSAM_EACH_PAIR(diagonal_readout),
    TORCH_SSAM_EACH_PAIR(diagonal_combine),
    TORCH_SSAM_EACH_PAIR(diagonal_backward_rows),
    TORCH_SSAM_EACH_DTYPE(diagonal_add),
    TORCH_SSAM_EACH_DTYPE(diagonal_weight_gradient),
};

}  // namespace

const Kernels* TORCH_SSAM_CONCAT(kernels_, TORCH_SSAM_VARIANT)() { return &kTable; }

}  // namespace torch_ssam::cpu
