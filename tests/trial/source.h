// Where the trial's noise comes from: cells of one stream and its nearest neighbours, filled by the operators' own
// loops (csrc/ops/cpu/kernels.cpp); and, to show that the tests can fail, the same noise with a stated defect.
#pragma once

#include <cmath>
#include <cstdint>
#include <iterator>
#include <string>
#include <vector>

#include "../cpp/kernel_calls.h"

namespace torch_ssam::trial {

enum class Defect { none, mean, variance, tails, neighbours, magnitudes, pairs, seeds, places, sign, signs };

struct DefectCase {
  Defect defect;
  math::Distribution distribution;
  const char* name;
  const char* found_by;  // how the names of the tests that must reject it begin
};
inline constexpr DefectCase kDefects[] = {
    {Defect::mean, math::Distribution::gaussian, "a mean of SIZE", "moment 1"},
    {Defect::variance, math::Distribution::gaussian, "a variance of 1 + SIZE", "moment 2"},
    {Defect::tails, math::Distribution::gaussian, "values beyond 4 halved, a share SIZE of them", "tails"},
    {Defect::neighbours, math::Distribution::gaussian, "neighbours correlated by SIZE", "lag 1, values"},
    {Defect::magnitudes, math::Distribution::gaussian, "neighbours of one magnitude, a share SIZE", "lag 1, squares"},
    {Defect::pairs, math::Distribution::gaussian, "Box-Muller partners of one sign, a share SIZE", "partners"},
    {Defect::seeds, math::Distribution::gaussian, "seeds 2k and 2k + 1 the same, a share SIZE", "seed + 1"},
    {Defect::places, math::Distribution::rademacher, "places 2k and 2k + 1 the same, a share SIZE", "place + 1"},
    {Defect::sign, math::Distribution::rademacher, "one bit in 2048 set, a share SIZE", "positions"},
    {Defect::signs, math::Distribution::rademacher, "neighbours of one sign, a share SIZE", "lag 1"},
};

// The streams of a cell: the first and those one step away from it.
struct Neighbour {
  const char* name;
  int64_t seed, draw, place, sample;
};
inline constexpr Neighbour kNeighbours[] = {{"itself", 0, 0, 0, 0},
                                            {"seed + 1", 1, 0, 0, 0},
                                            {"draw + 1", 0, 1, 0, 0},
                                            {"place + 1", 0, 0, 1, 0},
                                            {"sample + 1", 0, 0, 0, 1},
                                            {"seed + 2^32", 1LL << 32, 0, 0, 0},
                                            {"draw + 2^32", 0, 1LL << 32, 0, 0}};
inline constexpr int kStreams = static_cast<int>(std::size(kNeighbours));

class Source {
 public:
  Source(const cpu::Kernels& kernels, math::Distribution distribution, int64_t first_seed, int64_t length)
      : kernels_(kernels), distribution_(distribution), first_seed_(first_seed), length_(length) {}

  void set_defect(Defect defect, double size) {
    defect_ = defect;
    size_ = size;
  }

  // `length` values of stream `neighbour` of a cell. First streams have even seed, draw, place and sample, so no stream
  // comes twice. Every other cell starts inside its tensors, at a place of its own.
  void fill(int64_t cell, int neighbour, float* values) {
    const Neighbour& n = kNeighbours[neighbour];
    const int64_t begin = cell % 2 == 0 ? 0 : cell * length_;
    int64_t seed = 2 * (cell % 32) + n.seed, place = 2 * (cell / 1024 % 32) + n.place;
    const int64_t draw = 2 * (cell / 32 % 32) + n.draw, sample = 2 * (cell / 32768) + n.sample;
    fill_noise(seed, draw, place, sample, begin, values);
    if (defect_ != Defect::none) spoil(seed, draw, place, sample, begin, values);
  }

 private:
  void fill_noise(int64_t seed, int64_t draw, int64_t place, int64_t sample, int64_t begin, float* values) const {
    cpu::fill_noise(kernels_, math::make_noise_stream(first_seed_ + seed, draw, place, sample), distribution_,
                    {begin, length_}, values);
  }

  // True for a share `size` of the calls.
  bool due() {
    phase_ += size_;
    if (phase_ < 1.0) return false;
    phase_ -= 1.0;
    return true;
  }

  void spoil(int64_t seed, int64_t draw, int64_t place, int64_t sample, int64_t begin, float* values) {
    const auto size = static_cast<float>(size_);
    if (defect_ == Defect::seeds || defect_ == Defect::places) {
      std::vector<float> other(static_cast<size_t>(length_));
      const bool seeds = defect_ == Defect::seeds;
      fill_noise(seeds ? seed & ~1LL : seed, draw, seeds ? place : place & ~1LL, sample, begin, other.data());
      for (int64_t i = 0; i < length_; ++i) {
        if (due()) values[i] = other[static_cast<size_t>(i)];
      }
      return;
    }
    for (int64_t i = length_ - 1; i >= 0; --i) {
      float& z = values[i];
      switch (defect_) {
        case Defect::mean:
          z += size;
          break;
        case Defect::variance:
          z *= std::sqrt(1.0F + size);
          break;
        case Defect::tails:
          if (std::fabs(z) > 4.0F && due()) z *= 0.5F;
          break;
        case Defect::neighbours:
          if (i > 0) z = (z + size * values[i - 1]) / std::sqrt(1.0F + size * size);
          break;
        case Defect::magnitudes:
          if (i % 2 == 1 && due()) z = std::copysign(values[i - 1], z);
          break;
        case Defect::pairs:
          if (i / 16 % 2 == 1 && due()) z = std::copysign(z, values[i - 16]);
          break;
        case Defect::sign:
          if ((begin + i) % 2048 == 70 && due()) z = -1.0F;
          break;
        case Defect::signs:
          if (i % 2 == 1 && due()) z = values[i - 1];
          break;
        default:
          break;
      }
    }
  }

  const cpu::Kernels& kernels_;
  math::Distribution distribution_;
  int64_t first_seed_, length_;
  Defect defect_ = Defect::none;
  double size_ = 0, phase_ = 0;
};

}  // namespace torch_ssam::trial
