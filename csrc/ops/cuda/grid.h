// What kernel bodies know of the machine: the thread they are, 16-byte accesses, numbers that lie in device memory, and
// the noise of the elements that a thread owns. Plain functions, so that g++ compiles the same bodies and a test walks
// the launch grid on the host (test_cuda_on_host.cpp); launch.h has the __global__ wrapper.
// A thread owns C neighbouring lanes (counters) of a block of 64 elements, hence the elements 64 b + 16 j + lane + 0..C-1
// for j = 0..3: neighbours in memory, four words of every counter used, no shuffles.
#pragma once

#include "../../math/stored.h"

// Loops of unknown length, a few turns at a time, so that several loads are under way.
#define TORCH_SSAM_PRAGMA(text) _Pragma(#text)
#if defined(__CUDACC__)
#define TORCH_SSAM_UNROLL_BY(count) TORCH_SSAM_PRAGMA(unroll count)
#else
#define TORCH_SSAM_UNROLL_BY(count)
#endif

namespace torch_ssam::cuda {

inline constexpr int kThreads = 256;  // a block

struct Thread {
  int64_t block;
  int index;
};

TORCH_SSAM_BODY int64_t global_index(Thread at) { return at.block * kThreads + at.index; }

inline constexpr int kVectorBytes = 16;
template <typename T>
inline constexpr int kVector = kVectorBytes / static_cast<int>(sizeof(T));

template <typename T>
struct alignas(kVectorBytes) Pack {
  T at[kVector<T>];
};

// kCount neighbours: whole 16-byte accesses, or one scalar.
template <int kCount, typename T>
TORCH_SSAM_BODY void load_group(const T* from, T (&to)[kCount]) {
  if constexpr (kCount == 1) {
    to[0] = *from;
  } else {
    static_assert(kCount % kVector<T> == 0);
    TORCH_SSAM_UNROLL
    for (int i = 0; i < kCount / kVector<T>; ++i) {
      const Pack<T> pack = reinterpret_cast<const Pack<T>*>(from)[i];
      TORCH_SSAM_UNROLL
      for (int k = 0; k < kVector<T>; ++k) to[i * kVector<T> + k] = pack.at[k];
    }
  }
}

template <int kCount, typename T>
TORCH_SSAM_BODY void store_group(T* to, const T (&from)[kCount]) {
  if constexpr (kCount == 1) {
    *to = from[0];
  } else {
    static_assert(kCount % kVector<T> == 0);
    TORCH_SSAM_UNROLL
    for (int i = 0; i < kCount / kVector<T>; ++i) {
      Pack<T> pack;
      TORCH_SSAM_UNROLL
      for (int k = 0; k < kVector<T>; ++k) pack.at[k] = from[i * kVector<T> + k];
      reinterpret_cast<Pack<T>*>(to)[i] = pack;
    }
  }
}

// Lanes a thread owns on the aligned path: 16 bytes of the narrower type, and at least four lanes.
template <typename model_t>
inline constexpr int kLanesOwned = sizeof(model_t) == 2 ? 8 : 4;

// A number that the host knows, or a float or double in device memory, read where it is used: no synchronisation.
struct Number {
  const void* memory = nullptr;
  bool is_double = false;
  double value = 0.0;
};

TORCH_SSAM_BODY double read(const Number& n) {
  if (n.memory == nullptr) return n.value;
  return n.is_double ? *static_cast<const double*>(n.memory)
                     : static_cast<double>(*static_cast<const float*>(n.memory));
}

struct NoiseSettings {
  const int64_t* generator;  // (seed, draw) on the device: a replayed CUDA graph sees the draw of its replay
  int64_t draw_offset;
  int64_t sample;
  math::Distribution distribution;
  double noise_std;  // signed
};

TORCH_SSAM_BODY math::NoiseStream make_stream(const NoiseSettings& n, int64_t place) {
  const auto draw = static_cast<uint64_t>(n.generator[1]) + static_cast<uint64_t>(n.draw_offset);
  return math::make_noise_stream(n.generator[0], static_cast<int64_t>(draw), place, n.sample);
}

// The noise of one thread's elements. Words become values two j at a time, in place, so that few registers live.
template <int kCount>
struct OwnedNoise {
  uint32_t word[4][kCount];

  TORCH_SSAM_BODY void make(OwnedNoise& noise, const math::NoiseStream& stream, math::Distribution distribution,
                            int64_t block, int lane) {
    constexpr int64_t kBits = math::kRademacherBlock / math::kGaussianBlock;
    const int64_t wide = distribution == math::Distribution::gaussian ? block : block / kBits;
    const auto first = static_cast<uint64_t>(wide) * math::kLanes + static_cast<uint64_t>(lane);
    TORCH_SSAM_UNROLL
    for (int l = 0; l < kCount; ++l) {
      const math::Words4 w = math::noise_words(stream, static_cast<uint32_t>(first) + static_cast<uint32_t>(l),
                                               static_cast<uint32_t>(first >> 32));
      noise.word[0][l] = w.x0;
      noise.word[1][l] = w.x1;
      noise.word[2][l] = w.x2;
      noise.word[3][l] = w.x3;
    }
  }

  // Afterwards word[j][l] and word[j + 1][l] hold the bits of float values; j is 0 or 2.
  TORCH_SSAM_BODY void to_values(OwnedNoise& noise, math::Distribution distribution, int64_t block, int j) {
    constexpr int64_t kBits = math::kRademacherBlock / math::kGaussianBlock;
    if (distribution == math::Distribution::gaussian) {
      TORCH_SSAM_UNROLL
      for (int l = 0; l < kCount; ++l) {
        const math::GaussianPair pair = math::gaussian_pair(noise.word[j][l], noise.word[j + 1][l]);
        noise.word[j][l] = math::float_to_bits(pair.first);
        noise.word[j + 1][l] = math::float_to_bits(pair.second);
      }
    } else {
      const int bit = static_cast<int>(block % kBits);
      TORCH_SSAM_UNROLL
      for (int l = 0; l < kCount; ++l) {
        noise.word[j][l] = math::float_to_bits(math::rademacher(noise.word[j][l], bit));
        noise.word[j + 1][l] = math::float_to_bits(math::rademacher(noise.word[j + 1][l], bit));
      }
    }
  }
};

}  // namespace torch_ssam::cuda
