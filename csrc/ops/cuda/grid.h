// What kernel bodies know of the machine: the thread they are, 16-byte accesses, numbers that lie in device memory, and
// the noise of the elements that a thread owns. Plain functions, so that g++ compiles the same bodies and a test walks
// the launch grid on the host (test_cuda_on_host.cpp); launch.h has the __global__ wrapper.
// A thread owns C neighbouring lanes (counters) of a block of 64 elements, hence the elements
// 64 b + 16 j + lane + 0..C-1 for j = 0..3: neighbours in memory, four words of every counter used, no shuffles.
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

// One access of 16 or 8 bytes. On the device by name: from plain C++ the compiler sometimes makes four narrow ones.
template <int kWords>
struct alignas(4 * kWords) Bytes {
  uint32_t word[kWords];
};

template <int kWords>
TORCH_SSAM_BODY Bytes<kWords> load_bytes(const void* from) {
#if defined(__CUDA_ARCH__)
  Bytes<kWords> bytes;
  if constexpr (kWords == 4) {
    asm volatile("ld.global.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(bytes.word[0]), "=r"(bytes.word[1]), "=r"(bytes.word[2]), "=r"(bytes.word[3])
                 : "l"(__cvta_generic_to_global(from)));
  } else {
    asm volatile("ld.global.v2.b32 {%0, %1}, [%2];"
                 : "=r"(bytes.word[0]), "=r"(bytes.word[1])
                 : "l"(__cvta_generic_to_global(from)));
  }
  return bytes;
#else
  return *static_cast<const Bytes<kWords>*>(__builtin_assume_aligned(from, 4 * kWords));
#endif
}

template <int kWords>
TORCH_SSAM_BODY void store_bytes(void* to, const Bytes<kWords>& bytes) {
#if defined(__CUDA_ARCH__)
  if constexpr (kWords == 4) {
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)), "r"(bytes.word[0]),
                 "r"(bytes.word[1]), "r"(bytes.word[2]), "r"(bytes.word[3]));
  } else {
    asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(to)), "r"(bytes.word[0]),
                 "r"(bytes.word[1]));
  }
#else
  *static_cast<Bytes<kWords>*>(__builtin_assume_aligned(to, 4 * kWords)) = bytes;
#endif
}

// kCount neighbours: accesses of 16 bytes (of 8 where that is all there is), or one scalar.
template <int kCount, typename T>
inline constexpr int kWordsTogether = kCount < kVector<T> ? kCount * static_cast<int>(sizeof(T)) / 4 : 4;

template <int kCount, typename T>
TORCH_SSAM_BODY void load_group(const T* from, T (&to)[kCount]) {
  if constexpr (kCount == 1) {
    to[0] = *from;
  } else {
    constexpr int kWords = kWordsTogether<kCount, T>;
    constexpr int kStep = 4 * kWords / static_cast<int>(sizeof(T));
    TORCH_SSAM_UNROLL
    for (int i = 0; i < kCount; i += kStep) {
      const Bytes<kWords> bytes = load_bytes<kWords>(from + i);
      __builtin_memcpy(to + i, &bytes, sizeof(bytes));
    }
  }
}

template <int kCount, typename T>
TORCH_SSAM_BODY void store_group(T* to, const T (&from)[kCount]) {
  if constexpr (kCount == 1) {
    *to = from[0];
  } else {
    constexpr int kWords = kWordsTogether<kCount, T>;
    constexpr int kStep = 4 * kWords / static_cast<int>(sizeof(T));
    TORCH_SSAM_UNROLL
    for (int i = 0; i < kCount; i += kStep) {
      Bytes<kWords> bytes;
      __builtin_memcpy(&bytes, from + i, sizeof(bytes));
      store_bytes(to + i, bytes);
    }
  }
}

// Lanes a thread owns on the aligned path: 16 bytes of the narrower type.
template <typename model_t>
inline constexpr int kLanesOwned = kVector<model_t>;

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
  double noise_std;    // signed
  bool alone = false;  // by element: not added to the weights that scale it
};

TORCH_SSAM_BODY math::NoiseStream make_stream(const NoiseSettings& n, int64_t place) {
  const int64_t draw = math::later_draw(n.generator[1], n.draw_offset);
  return math::make_noise_stream(n.generator[0], draw, place, n.sample);
}

// Which bit of its words a block of 64 elements takes.
TORCH_SSAM_BODY int rademacher_bit(int64_t block) {
  return static_cast<int>(block % (math::kRademacherBlock / math::kGaussianBlock));
}

// The same value, of which the compiler does not know that it is: what is read at this index is read again each time.
TORCH_SSAM_BODY int not_kept(int index) {
#if defined(__CUDA_ARCH__)
  int same;
  asm volatile("mov.b32 %0, %1;" : "=r"(same) : "r"(index));
  return same;
#else
  return index;
#endif
}

// The noise of one thread's elements. Words become values two j at a time, in place, so that few registers live.
template <int kCount>
struct OwnedNoise {
  uint32_t word[4][kCount];

  TORCH_SSAM_BODY void make(OwnedNoise& noise, const math::NoiseStream& stream, math::Distribution distribution,
                            int64_t block, int lane) {
    const auto first =
        static_cast<uint64_t>(math::counter_block(distribution, block)) * math::kLanes + static_cast<uint64_t>(lane);
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

  // bit is rademacher_bit(block). Afterwards word[j][l] and word[j + 1][l] hold the bits of float values; j is 0 or 2.
  TORCH_SSAM_BODY void to_values(OwnedNoise& noise, math::Distribution distribution, int bit, int j) {
    switch (distribution) {
      case math::Distribution::gaussian:
        TORCH_SSAM_UNROLL
        for (int l = 0; l < kCount; ++l) {
          const math::GaussianPair pair = math::gaussian_pair(noise.word[j][l], noise.word[j + 1][l]);
          noise.word[j][l] = math::float_to_bits(pair.first);
          noise.word[j + 1][l] = math::float_to_bits(pair.second);
        }
        return;
      case math::Distribution::rademacher:
        TORCH_SSAM_UNROLL
        for (int l = 0; l < kCount; ++l) {
          noise.word[j][l] = math::float_to_bits(math::rademacher(noise.word[j][l], bit));
          noise.word[j + 1][l] = math::float_to_bits(math::rademacher(noise.word[j + 1][l], bit));
        }
        return;
    }
    __builtin_unreachable();
  }
};

}  // namespace torch_ssam::cuda
