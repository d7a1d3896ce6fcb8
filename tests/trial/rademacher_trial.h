// The Rademacher noise against fair independent signs, on its bits (set where the sign is negative): balance, the 2048
// positions of a block, patterns of eight (in a row, and in one word), lengths of runs, agreement with the sign some
// elements on, and with the signs of neighbouring streams.
#pragma once

#include <array>
#include <bit>
#include <string>
#include <vector>

#include "source.h"
#include "statistics.h"

namespace torch_ssam::trial {

class RademacherTrial {
 public:
  static constexpr int64_t kLength = 32768;  // elements of a stream in a cell: 16 blocks
  static constexpr double kPerCell = static_cast<double>(kStreams) * kLength;

  void add_cell(Source& source, int64_t cell) {
    for (int n = 0; n < kStreams; ++n) {
      source.fill(cell, n, noise_.data());
      pack(bits_[n]);
      add_one_stream(bits_[n]);
      for (size_t i = 0; i < kShifts.size() && n > 0; ++i) {
        const int64_t shift = kShifts[i];
        across_[n][i].add(shift < 0 ? bits_[n] : bits_[0], shift < 0 ? bits_[0] : bits_[n], shift < 0 ? -shift : shift);
      }
    }
  }

  void judge(Verdict& verdict) const {
    verdict.add("values other than +1 and -1", "n", static_cast<double>(strange_), strange_ == 0 ? 1.0 : 0.0);
    const auto n = static_cast<double>(count_);
    verdict.add_normal("balance", (2.0 * static_cast<double>(set_) - n) / std::sqrt(n));
    ChiSquare positions;
    const double each = n / static_cast<double>(positions_.size());
    for (const uint64_t set : positions_) positions.add(static_cast<double>(set), each / 2);
    // A binomial count has half the variance of a Poisson one, and nothing ties the positions together.
    verdict.add("positions, 2048 of them", "chi2", 2 * positions.value, chi_square_p(2 * positions.value, 2048));
    judge_patterns(verdict, rows_, "patterns of eight neighbours");
    judge_patterns(verdict, columns_, "patterns of eight bits of one word");
    judge_runs(verdict);
    for (size_t i = 0; i < kLags.size(); ++i) lags_[i].judge(verdict, "lag " + std::to_string(kLags[i]));
    for (size_t s = 1; s < kStreams; ++s) {
      for (size_t i = 0; i < kShifts.size(); ++i) {
        const std::string shift = kShifts[i] == 0 ? "" : ", shifted by " + std::to_string(kShifts[i]);
        across_[s][i].judge(verdict, kNeighbours[s].name + shift);
      }
    }
  }

 private:
  static constexpr size_t kWords = kLength / 64;
  static constexpr size_t kLongest = 20;  // longer runs count as one class
  static constexpr std::array<int64_t, 21> kLags{1,  2,  3,  4,  8,  15,  16,   17,   31,   32,  33,
                                                 47, 48, 63, 64, 65, 128, 1024, 2047, 2048, 2049};
  static constexpr std::array<int64_t, 5> kShifts{0, 1, -1, 64, -64};
  using Bits = std::array<uint64_t, kWords>;

  // How often a sign agrees with the one `lag` elements on.
  struct Agreement {
    uint64_t differ = 0, count = 0;
    void add(const Bits& a, const Bits& b, int64_t lag) {
      const auto words = static_cast<size_t>(lag / 64);
      const int bits = static_cast<int>(lag % 64);
      for (size_t i = 0; i + words + (bits != 0) < kWords; ++i) {
        uint64_t later = b[i + words] >> bits;
        if (bits != 0) later |= b[i + words + 1] << (64 - bits);
        differ += static_cast<uint64_t>(std::popcount(a[i] ^ later));
        count += 64;
      }
    }
    void judge(Verdict& verdict, const std::string& name) const {
      const auto n = static_cast<double>(count);
      verdict.add_normal(name, (n - 2.0 * static_cast<double>(differ)) / std::sqrt(n));
    }
  };

  void pack(Bits& bits) {
    for (size_t w = 0; w < kWords; ++w) {
      uint64_t word = 0;
      for (size_t i = 0; i < 64; ++i) {
        const uint32_t value = math::float_to_bits(noise_[64 * w + i]);
        strange_ += (value & 0x7fffffffU) != 0x3f800000U;
        word |= static_cast<uint64_t>(value >> 31) << i;
      }
      bits[w] = word;
    }
  }

  void add_one_stream(const Bits& bits) {
    count_ += kLength;
    for (size_t w = 0; w < kWords; ++w) {
      set_ += static_cast<uint64_t>(std::popcount(bits[w]));
      for (size_t i = 0; i < 64; ++i) positions_[w % 32 * 64 + i] += (bits[w] >> i) & 1U;
      for (int i = 0; i < 64; i += 8) ++rows_[(bits[w] >> i) & 0xffU];
    }
    for (size_t w = 0; w < kWords; w += 8) {
      for (size_t i = 0; i < 64; ++i) {
        uint64_t pattern = 0;
        for (size_t k = 0; k < 8; ++k) pattern |= ((bits[w + k] >> i) & 1U) << k;
        ++columns_[pattern];
      }
    }
    add_runs(bits);
    for (size_t i = 0; i < kLags.size(); ++i) lags_[i].add(bits, bits, kLags[i]);
  }

  // A run ends where the next sign differs. The stream's first and last runs, cut off by its ends, are left out.
  void add_runs(const Bits& bits) {
    int64_t last_end = -1;
    for (size_t w = 0; w < kWords; ++w) {
      const uint64_t next = (bits[w] >> 1) | (w + 1 < kWords ? bits[w + 1] << 63 : bits[w] & (1ULL << 63));
      for (uint64_t ends = bits[w] ^ next; ends != 0; ends &= ends - 1) {
        const int64_t end = static_cast<int64_t>(64 * w) + std::countr_zero(ends);
        // Runs that begin in the stream's last 64 elements are left out, short or long: else short ones would win.
        if (last_end >= 0 && last_end < kLength - 65) {
          ++runs_[std::min(static_cast<size_t>(end - last_end), kLongest + 1) - 1];
        }
        last_end = end;
      }
    }
  }

  static void judge_patterns(Verdict& verdict, const std::array<uint64_t, 256>& counts, const std::string& name) {
    double total = 0;
    for (const uint64_t count : counts) total += static_cast<double>(count);
    ChiSquare chi;
    for (const uint64_t count : counts) chi.add(static_cast<double>(count), total / 256);
    verdict.add_chi_square(name, chi);
  }

  // Length k has probability 2^-k. Classes of fewer than 10 expected runs are joined to the last one before them.
  void judge_runs(Verdict& verdict) const {
    double total = 0;
    for (const uint64_t count : runs_) total += static_cast<double>(count);
    ChiSquare chi;
    double rest = total;
    for (size_t k = 1; k <= kLongest + 1; ++k) {
      const double expected = total * std::ldexp(1.0, -static_cast<int>(k));
      if (k == kLongest + 1 || expected / 2 < 10) {
        chi.add(rest, 2 * expected);
        break;
      }
      chi.add(static_cast<double>(runs_[k - 1]), expected);
      rest -= static_cast<double>(runs_[k - 1]);
    }
    verdict.add_chi_square("lengths of runs", chi);
  }

  std::vector<float> noise_ = std::vector<float>(kLength);
  std::array<Bits, kStreams> bits_{};
  uint64_t count_ = 0, set_ = 0, strange_ = 0;
  std::array<uint64_t, 2048> positions_{};
  std::array<uint64_t, 256> rows_{}, columns_{};
  std::array<uint64_t, kLongest + 1> runs_{};
  std::array<Agreement, kLags.size()> lags_{};
  std::array<std::array<Agreement, kShifts.size()>, kStreams> across_{};
};

}  // namespace torch_ssam::trial
