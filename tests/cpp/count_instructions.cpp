// One kernel on 65,536 float elements, inside a function that callgrind counts alone; tools/check_instructions.py runs
// it.
//   count_instructions <plain|avx2> <perturb|update|update_and_perturb|regenerate|diagonal> [gaussian|rademacher]
//   count_instructions compiler
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "kernel_calls.h"

namespace {

using namespace torch_ssam;
using namespace torch_ssam::cpu;

constexpr int64_t kCount = 1 << 16;
constexpr int kFloat = static_cast<int>(DtypePair::f32);

struct Work {
  const Kernels* kernels;
  std::string what;
  NoiseArgs noise;
  Update update;
  std::vector<float> weights, grad, momentum, saved, perturbed;
};

}  // namespace

// What callgrind collects.
extern "C" __attribute__((noinline, used, visibility("default"))) void torch_ssam_counted(void* argument) {
  auto& w = *static_cast<Work*>(argument);
  const Kernels& k = *w.kernels;
  const Span span{0, kCount};
  if (w.what == "perturb") {
    k.perturb[kFloat](w.noise, span, w.weights.data(), w.saved.data(), w.weights.data());
  } else if (w.what == "regenerate") {
    k.perturb[kFloat](w.noise, span, w.weights.data(), nullptr, w.weights.data());
  } else if (w.what == "update") {
    update(k, kFloat, w.update, span, w.weights.data(), w.grad.data(), w.momentum.data());
  } else if (w.what == "update_and_perturb") {
    update_and_perturb(k, kFloat, w.update, w.noise, span, w.weights.data(), w.grad.data(), w.momentum.data(),
                       w.perturbed.data());
  } else {
    k.diagonal_multiply[kFloat](w.weights.data(), w.grad.data(), w.perturbed.data(), kCount);
  }
}

int main(int argc, char** argv) {
  if (argc == 2 && std::strcmp(argv[1], "compiler") == 0) {
#if defined(__clang__)
    std::printf("clang %d\n", __clang_major__);
#else
    std::printf("gcc %d\n", __GNUC__);
#endif
    return 0;
  }
  if (argc < 3) return 2;
  const std::string variant = argv[1];
  Work work{};
  work.kernels = variant == "avx2" ? kernels_avx2() : variant == "plain" ? kernels_plain() : nullptr;
  work.what = argv[2];
  if (work.kernels == nullptr) {
    std::fprintf(stderr, "this build has no kernels '%s'\n", argv[1]);
    return 3;
  }
  const bool rademacher = argc > 3 && std::strcmp(argv[3], "rademacher") == 0;
  work.noise = {math::make_noise_stream(1, 2, 3, 0),
                rademacher ? math::Distribution::rademacher : math::Distribution::gaussian, 0.01};
  work.update.rule = {0.1, 0.9, 0.0, 0.0, false, false};
  for (auto* v : {&work.weights, &work.grad, &work.momentum, &work.saved, &work.perturbed}) v->assign(kCount, 0.5F);
  torch_ssam_counted(&work);
  // The result is used, so that nothing is left out.
  std::printf("%g\n", static_cast<double>(work.weights[7] + work.perturbed[7]));
  return 0;
}
