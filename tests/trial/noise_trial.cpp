// The noise on trial: COUNT Gaussian values and COUNT Rademacher signs, from the operators' own loops, against the laws
// of docs/noise.md. Exit code 0 where no test rejects, 1 where one does, 2 for a bad argument.
//   noise_trial [--count N] [--first-seed S] [--alpha A] [--variant plain|avx2|avx512]
//   noise_trial --spoiled [--count N]     the same on noise with one stated defect after another: 0 where each is found
#include <cstdlib>
#include <cstring>
#include <memory>

#include "gaussian_trial.h"
#include "rademacher_trial.h"

namespace {

using namespace torch_ssam;
using namespace torch_ssam::trial;

struct Options {
  double count = 1e9, alpha = 1e-3;
  int64_t first_seed = 0;
  bool spoiled = false;
};

template <typename Trial>
void run(Verdict& verdict, math::Distribution distribution, const Options& options, Defect defect, double size) {
  Source source(cpu::kernels(), distribution, options.first_seed, Trial::kLength);
  source.set_defect(defect, size);
  const auto trial = std::make_unique<Trial>();
  const auto cells = static_cast<int64_t>(std::ceil(options.count / Trial::kPerCell));
  for (int64_t cell = 0; cell < cells; ++cell) trial->add_cell(source, cell);
  trial->judge(verdict);
}

void run(Verdict& verdict, math::Distribution distribution, const Options& options, Defect defect = Defect::none,
         double size = 0) {
  const bool gaussian = distribution == math::Distribution::gaussian;
  verdict.set_law(gaussian ? "Gaussian" : "Rademacher");
  if (gaussian) {
    run<GaussianTrial>(verdict, distribution, options, defect, size);
  } else {
    run<RademacherTrial>(verdict, distribution, options, defect, size);
  }
}

// Each defect at the size that moves its statistic by ten standard errors or somewhat more.
double size_of(Defect defect, double count) {
  const double se = 1.0 / std::sqrt(count);
  switch (defect) {
    case Defect::mean:
      return 15 * se;
    case Defect::variance:
      return 15 * std::sqrt(2.0) * se;
    case Defect::neighbours:
      return 10 * se;
    case Defect::tails:
      return std::min(1.0, 10 / std::sqrt(count * 6e-5));
    case Defect::sign:
      return std::min(1.0, 60 * std::sqrt(2048.0) * se);
    case Defect::pairs:
      return 20 * se;
    case Defect::magnitudes:
      return 30 * se;
    case Defect::seeds:
    case Defect::places:
      return 10 * std::sqrt(static_cast<double>(kStreams)) * se;
    default:
      return 20 * se;
  }
}

int try_defects(const Options& options) {
  int missed = 0;
  for (const DefectCase& c : kDefects) {
    Verdict verdict;
    const double size = size_of(c.defect, options.count);
    run(verdict, c.distribution, options, c.defect, size);
    const bool found = verdict.rejects(c.found_by, options.alpha);
    missed += !found;
    std::printf("%s by \"%s\": %s, SIZE = %.3g\n", found ? "found " : "MISSED", c.found_by, c.name, size);
  }
  return missed == 0 ? 0 : 1;
}

bool parse(int argc, char** argv, Options& options) {
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    if (name == "--spoiled") {
      options.spoiled = true;
      continue;
    }
    if (i + 1 == argc) return false;
    const char* text = argv[++i];
    char* end = nullptr;
    if (name == "--variant") {
      if (!cpu::select_kernels(text)) return false;
      continue;
    }
    const double value = std::strtod(text, &end);
    if (*end != '\0' || end == text) return false;
    if (name == "--count" && value >= 1e6 && value <= 1e12) {
      options.count = value;
    } else if (name == "--alpha" && value > 0 && value < 1) {
      options.alpha = value;
    } else if (name == "--first-seed" && std::fabs(value) < 1e15) {
      options.first_seed = static_cast<int64_t>(value);
    } else {
      return false;
    }
  }
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  if (!parse(argc, argv, options)) {
    std::fprintf(stderr,
                 "usage: noise_trial [--spoiled] [--count 1e6 to 1e12] [--first-seed S] [--alpha A] "
                 "[--variant plain|avx2|avx512, where build and processor have it]\n");
    return 2;
  }
  std::printf("noise_trial: %g values of each law, loops %s, first seed %lld\n\n", options.count, cpu::kernels().name,
              static_cast<long long>(options.first_seed));
  if (options.spoiled) return try_defects(options);
  Verdict verdict;
  for (const auto distribution : {math::Distribution::gaussian, math::Distribution::rademacher}) {
    run(verdict, distribution, options);
  }
  return verdict.report(options.alpha) == 0 ? 0 : 1;
}
