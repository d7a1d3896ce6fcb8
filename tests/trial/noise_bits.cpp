// One line a hash (FNV-1a, 64 bits) over many noise values, to compare compilers and processors: each law, from the
// operators' loops and from the contract's scalar function, over streams and elements at the ends of their ranges.
// Every variant of the loops that build and processor have must print the same.
//   noise_bits [FILE]     exit code 1 where variants differ, or the lines are not those of FILE
//   (tests/data/noise_bits.txt)
#include <cstdio>
#include <cstring>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "../cpp/kernel_calls.h"

namespace {

using namespace torch_ssam;
using math::Distribution;

class Hash {
 public:
  void add(uint64_t bits) { value_ = (value_ ^ bits) * 1099511628211ULL; }
  std::string line(const char* law, const char* what) const {
    char text[80];
    std::snprintf(text, sizeof(text), "%-10s %-24s %016llx\n", law, what, static_cast<unsigned long long>(value_));
    return text;
  }

 private:
  uint64_t value_ = 14695981039346656037ULL;
};

struct Stream {
  int64_t seed, draw, place, sample;
};
constexpr int64_t kLeast = INT64_MIN, kMost = INT64_MAX, kLastWord = 0xffffffffLL;
constexpr Stream kStreams[] = {{0, 0, 0, 0},
                               {7, 3, 1, 2},
                               {-1, -1, kLastWord, kLastWord},
                               {kLeast, kMost, 1LL << 31, 5},
                               {(1LL << 40) + 5, (1LL << 33) + 7, 12, 1LL << 31}};
// Where counters carry into their high word: 2^34 elements in, and 2^39 for Rademacher noise.
constexpr int64_t kBegins[] = {0, 12345, (1LL << 34) - 1000, (1LL << 39) - 1000, (1LL << 60) + 1};

std::string lines_of(const cpu::Kernels& kernels) {
  std::string lines;
  std::vector<float> values(1 << 17);
  std::vector<double> wide(values.size(), 0.1);
  for (const Distribution distribution : {Distribution::gaussian, Distribution::rademacher}) {
    const char* law = distribution == Distribution::gaussian ? "gaussian" : "rademacher";
    Hash loops, scalar, weights;
    for (const Stream& s : kStreams) {
      const auto stream = math::make_noise_stream(s.seed, s.draw, s.place, s.sample);
      for (const int64_t begin : kBegins) {
        const auto count = static_cast<int64_t>(values.size());
        cpu::fill_noise(kernels, stream, distribution, {begin, count}, values.data());
        for (const float z : values) loops.add(math::float_to_bits(z));
        for (int64_t i = 0; i < count; i += 16) {
          const float z = math::element_noise(stream, distribution, begin + i);
          scalar.add(math::float_to_bits(z));
        }
        const cpu::NoiseArgs args{stream, distribution, 0.01};
        kernels.perturb[static_cast<int>(cpu::DtypePair::f64)](args, {begin, count}, wide.data(), nullptr, wide.data());
        for (const double w : wide) {
          uint64_t bits;
          std::memcpy(&bits, &w, sizeof(bits));
          weights.add(bits);
        }
      }
    }
    lines += loops.line(law, "loops") + scalar.line(law, "every 16th, scalar") + weights.line(law, "float64 weights");
  }
  return lines;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 2) {
    std::fprintf(stderr, "usage: noise_bits [FILE with the expected lines]\n");
    return 2;
  }
  std::string expected;
  if (argc == 2) {
    std::ifstream file(argv[1]);
    std::ostringstream text;
    text << file.rdbuf();
    expected = text.str();
    if (expected.empty()) {
      std::fprintf(stderr, "noise_bits: no lines in '%s'; without an argument the lines are printed only\n", argv[1]);
      return 2;
    }
  }
  bool same = true;
  for (const char* variant : {"plain", "avx2", "avx512"}) {
    if (!cpu::select_kernels(variant)) {
      std::fprintf(stderr, "loops %s: not in this build or processor\n", variant);
      continue;
    }
    const std::string lines = lines_of(cpu::kernels());
    if (expected.empty()) {
      std::fputs(lines.c_str(), stdout);
      expected = lines;
    }
    std::fprintf(stderr, "loops %s: %s\n", variant, lines == expected ? "as expected" : "OTHER BITS");
    if (lines != expected) {
      std::fputs(lines.c_str(), stdout);
      same = false;
    }
  }
  return same ? 0 : 1;
}
