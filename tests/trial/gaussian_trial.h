// The Gaussian noise against the promised law: one value alone (histogram, tails, moments), two values of one stream at
// distances that the layout suggests (docs/noise.md: blocks of 64, lanes of 16), Box-Muller's partners, and the same
// place in neighbouring streams. `first` and `second` are Box-Muller's two formulas.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "source.h"
#include "statistics.h"

namespace torch_ssam::trial {

// Sums over pairs of values (v) and of centred squares (s = v^2 - 1), with eight running sums each: vectors.
struct PairSums {
  double values = 0, squares = 0;
  double count = 0;
  void add(const double* va, const double* sa, const double* vb, const double* sb, int64_t n) {
    double v[8] = {}, s[8] = {};
    const int64_t whole = n / 8 * 8;
    for (int64_t i = 0; i < whole; i += 8) {
      for (int l = 0; l < 8; ++l) {
        v[l] += va[i + l] * vb[i + l];
        s[l] += sa[i + l] * sb[i + l];
      }
    }
    for (int64_t i = whole; i < n; ++i) {
      v[0] += va[i] * vb[i];
      s[0] += sa[i] * sb[i];
    }
    for (int l = 0; l < 8; ++l) {
      values += v[l];
      squares += s[l];
    }
    count += static_cast<double>(n);
  }
  void judge(Verdict& verdict, const std::string& name) const {
    verdict.add_sum(name + ", values", values, count, 0, 1);
    verdict.add_sum(name + ", squares", squares, count, 0, 4);
  }
};

class GaussianTrial {
 public:
  static constexpr int64_t kLength = 4096;  // elements of a stream in a cell
  static constexpr double kPerCell = static_cast<double>(kStreams) * kLength;

  void add_cell(Source& source, int64_t cell) {
    for (int n = 0; n < kStreams; ++n) {
      source.fill(cell, n, noise_.data());
      for (size_t i = 0; i < kLength; ++i) {
        const double z = noise_[i];
        values_[n][i] = z;
        squares_[n][i] = z * z - 1.0;
      }
      add_marginals();
      add_lags(n);
      add_partners(n);
      if (n > 0) add_neighbour(n);
    }
  }

  void judge(Verdict& verdict) const {
    static constexpr const char* kHalves[] = {"first", "second"};
    // Moments of the normal law: E z^2k = 1, 3, 15, 105, 945, 10395.
    constexpr double kMoments[] = {1, 0, 1, 0, 3, 0, 15, 0, 105, 0, 945, 0, 10395};
    for (size_t half = 0; half < 2; ++half) {
      const std::string of = std::string(" of ") + kHalves[half] + " values";
      const auto n = static_cast<double>(count_);
      for (size_t k = 1; k <= 6; ++k) {
        verdict.add_sum("moment " + std::to_string(k) + of, powers_[half][k], n, kMoments[k],
                        kMoments[2 * k] - kMoments[k] * kMoments[k]);
      }
      judge_histogram(verdict, histogram_[half], of);
      // Exact zeros: a radius of 0 (2^-25, both values), and cos(pi / 2) (2^-25, the first value only).
      const double zero = half == 0 ? 0x1p-25 + 0x1p-25 - 0x1p-50 : 0x1p-25;
      verdict.add("exact zeros" + of, "n", static_cast<double>(zeros_[half]), poisson_p(zeros_[half], n * zero));
      verdict.add("values beyond sqrt(62 ln 2)" + of, "n", static_cast<double>(beyond_[half]),
                  beyond_[half] == 0 ? 1.0 : 0.0);
    }
    for (size_t i = 0; i < kLags.size(); ++i) lags_[i].judge(verdict, "lag " + std::to_string(kLags[i]));
    partners_.judge(verdict, "partners");
    judge_table(verdict, partner_table_, "partners, table of 16 x 16");
    judge_table(verdict, next_table_, "lag 1, table of 16 x 16");
    for (size_t n = 1; n < kStreams; ++n) {
      const std::string name = kNeighbours[n].name;
      for (size_t i = 0; i < kShifts.size(); ++i) {
        const std::string shift = kShifts[i] == 0 ? "" : ", shifted by " + std::to_string(kShifts[i]);
        across_[n][i].judge(verdict, name + shift);
      }
    }
  }

 private:
  // Bins of 2^-15 over [-6.5625, 6.5625): sqrt(62 ln 2) = 6.5555.
  static constexpr double kBinsPerUnit = 32768;
  static constexpr double kRange = 6.5625;
  static constexpr size_t kBins = 430080;
  static constexpr double kTail = 4.0;
  static constexpr std::array<int64_t, 19> kLags{1,  2,  3,  4,  8,  15, 16, 17,  31,  32,
                                                 33, 47, 48, 49, 63, 64, 65, 128, 1024};
  static constexpr std::array<int64_t, 5> kShifts{0, 1, -1, 16, -16};
  using Table = std::array<uint64_t, 256>;

  void add_marginals() {
    for (size_t block = 0; block < kLength; block += 16) {
      const size_t half = block / 16 % 2;
      double sums[7] = {};
      for (size_t i = block; i < block + 16; ++i) {
        const double z = noise_[i], z2 = z * z;
        sums[1] += z;
        sums[2] += z2;
        sums[3] += z2 * z;
        sums[4] += z2 * z2;
        sums[5] += z2 * z2 * z;
        sums[6] += z2 * z2 * z2;
        zeros_[half] += z == 0.0;
        if (std::fabs(z) >= kRange) {
          ++beyond_[half];
        } else {
          ++histogram_[half][static_cast<size_t>((z + kRange) * kBinsPerUnit)];
        }
      }
      for (size_t k = 1; k <= 6; ++k) powers_[half][k] += sums[k];
    }
    count_ += kLength / 2;
  }

  void add_lags(int n) {
    const double *v = values_[n].data(), *s = squares_[n].data();
    for (size_t i = 0; i < kLags.size(); ++i) {
      lags_[i].add(v, s, v + kLags[i], s + kLags[i], kLength - kLags[i]);
    }
    for (size_t i = 0; i + 1 < kLength; i += 2) ++next_table_[cell_of(noise_[i], noise_[i + 1])];
  }

  void add_partners(int n) {
    for (int64_t i = 0; i < kLength; i += 32) {
      const double *v = values_[n].data() + i, *s = squares_[n].data() + i;
      partners_.add(v, s, v + 16, s + 16, 16);
      for (size_t l = static_cast<size_t>(i); l < static_cast<size_t>(i) + 16; ++l) {
        ++partner_table_[cell_of(noise_[l], noise_[l + 16])];
      }
    }
  }

  void add_neighbour(int n) {
    for (size_t i = 0; i < kShifts.size(); ++i) {
      const int64_t shift = kShifts[i], a = shift < 0 ? -shift : 0, b = shift < 0 ? 0 : shift;
      across_[n][i].add(values_[0].data() + a, squares_[0].data() + a, values_[n].data() + b, squares_[n].data() + b,
                        kLength - a - b);
    }
  }

  // Sixteen groups of about one probability: edges are those multiples of 1/16 next to the normal quantiles.
  static double edge(int group) {
    constexpr double kEdges[] = {-24.5, -18.4, -14.2, -10.8, -7.8, -5.1, -2.5, 0,
                                 2.5,   5.1,   7.8,   10.8,  14.2, 18.4, 24.5};
    if (group <= 0) return -kRange;
    if (group >= 16) return kRange;
    return std::round(kEdges[group - 1]) / 16.0;
  }
  static const std::array<uint8_t, 210>& groups() {
    static const auto table = [] {
      std::array<uint8_t, 210> t{};
      for (size_t i = 0; i < t.size(); ++i) {
        const double z = -kRange + static_cast<double>(i) / 16.0;
        while (z >= edge(t[i] + 1) && t[i] < 15) ++t[i];
      }
      return t;
    }();
    return table;
  }
  static size_t cell_of(float a, float b) {
    const auto group = [](float z) {
      const double position = std::min(std::max((static_cast<double>(z) + kRange) * 16.0, 0.0), 209.0);
      return static_cast<size_t>(groups()[static_cast<size_t>(position)]);
    };
    return group(a) * 16 + group(b);
  }

  static void judge_table(Verdict& verdict, const Table& table, const std::string& name) {
    double total = 0;
    for (const uint64_t count : table) total += static_cast<double>(count);
    const auto share = [](size_t g) {
      const int group = static_cast<int>(g);
      return (group == 15 ? 1.0 : normal_cdf(edge(group + 1))) - (group == 0 ? 0.0 : normal_cdf(edge(group)));
    };
    ChiSquare chi;
    for (size_t a = 0; a < 16; ++a) {
      for (size_t b = 0; b < 16; ++b) {
        chi.add(static_cast<double>(table[a * 16 + b]), total * share(a) * share(b));
      }
    }
    verdict.add_chi_square(name, chi);
  }

  void judge_histogram(Verdict& verdict, const std::vector<uint32_t>& histogram, const std::string& of) const {
    const auto n = static_cast<double>(count_);
    // Kolmogorov and Smirnov's distance at the bins' edges, which is at most their distance: never a false alarm more.
    double distance = 0, below = 0;
    // Bins joined to 1000 in the bulk; in the tails both signs joined, in quarters, the last one to the end.
    ChiSquare bulk;
    double joined = 0, joined_from = -kTail;
    std::vector<double> tail_counts(static_cast<size_t>((kRange - kTail) * 4) + 1);
    for (size_t bin = 0; bin < kBins; ++bin) {
      const double low = static_cast<double>(bin) / kBinsPerUnit - kRange, high = low + 1 / kBinsPerUnit;
      const double count = histogram[bin];
      below += count;
      const double law = normal_cdf(high);
      distance = std::max(distance, std::fabs(below / n - law));
      if (low >= -kTail && high <= kTail) {
        joined += count;
        const double expected = n * (law - normal_cdf(joined_from));
        if (expected >= n / 1000 || high == kTail) {
          bulk.add(joined, expected);
          joined = 0;
          joined_from = high;
        }
      } else {
        tail_counts[static_cast<size_t>(((low >= 0 ? low : -high) - kTail) * 4)] += count;
      }
    }
    double outside = 0;
    for (const double count : tail_counts) outside += count;
    bulk.add(outside, n * promised_two_sided_tail(kTail));
    verdict.add("Kolmogorov-Smirnov" + of, "x", distance * std::sqrt(n), kolmogorov_p(distance * std::sqrt(n)));
    verdict.add_chi_square("histogram" + of, bulk);
    for (size_t i = 0; i < tail_counts.size(); ++i) {
      const double from = kTail + static_cast<double>(i) / 4;
      const double next = n * promised_two_sided_tail(from + 0.25);
      double count = tail_counts[i];
      double expected = n * promised_two_sided_tail(from);
      const bool last = next < 10;
      if (last) {
        for (size_t rest = i + 1; rest < tail_counts.size(); ++rest) count += tail_counts[rest];
      } else {
        expected -= next;
      }
      verdict.add("tails: |z| from " + std::to_string(from).substr(0, 4) + of, "n", count,
                  poisson_p(static_cast<uint64_t>(count), expected));
      if (last) break;
    }
  }

  std::vector<float> noise_ = std::vector<float>(kLength);
  std::array<std::array<double, kLength>, kStreams> values_{}, squares_{};
  uint64_t count_ = 0;  // of each half
  std::array<std::array<double, 7>, 2> powers_{};
  std::array<uint64_t, 2> zeros_{}, beyond_{};
  std::array<std::vector<uint32_t>, 2> histogram_{std::vector<uint32_t>(kBins), std::vector<uint32_t>(kBins)};
  std::array<PairSums, kLags.size()> lags_{};
  PairSums partners_;
  Table partner_table_{}, next_table_{};
  std::array<std::array<PairSums, kShifts.size()>, kStreams> across_{};
};

}  // namespace torch_ssam::trial
