// What translated kernels (translate.py) are written in: PTX's integer functions, accesses to memory that are checked
// for alignment, bounds and, with TORCH_SSAM_PTX_SHADOW, for races; and the description of a kernel that the launcher
// has. Names are short where a line of translated PTX uses them.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "launcher.h"

namespace torch_ssam::ptx {

inline constexpr int kDone = -1;  // a thread that has returned; else the barrier it waits at

template <typename To, typename From>
inline To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof(to));
  return to;
}

// --- Integers.

template <typename T>
inline T div_integer(T a, T b) {
  if (b == 0) fail("division by zero");
  return static_cast<T>(a / b);
}
template <typename T>
inline T rem_integer(T a, T b) {
  if (b == 0) fail("remainder by zero");
  return static_cast<T>(a % b);
}
template <typename T>
inline T min_integer(T a, T b) {
  return a < b ? a : b;
}
template <typename T>
inline T max_integer(T a, T b) {
  return a > b ? a : b;
}
// Shifts by the width or more give zeros, or copies of the sign.
template <typename T>
inline T shl(T a, u32 n) {
  return n >= 8 * sizeof(T) ? T(0) : static_cast<T>(a << n);
}
template <typename T>
inline T shr(T a, u32 n) {
  if (n >= 8 * sizeof(T)) return a < T(0) ? static_cast<T>(-1) : T(0);
  return static_cast<T>(a >> n);
}
inline u32 funnel_l(u32 low, u32 high, u32 n) {
  n &= 31;
  return n == 0 ? high : (high << n) | (low >> (32 - n));
}
inline u32 funnel_r(u32 low, u32 high, u32 n) {
  n &= 31;
  return n == 0 ? low : (high << (32 - n)) | (low >> n);
}
// Byte i of the result is the byte of (b, a) that nibble i of c chooses, or copies of its sign.
inline u32 prmt(u32 a, u32 b, u32 c) {
  const u64 bytes = (static_cast<u64>(b) << 32) | a;
  u32 out = 0;
  for (u32 i = 0; i < 4; ++i) {
    const u32 choice = (c >> (4 * i)) & 15;
    u32 byte = (bytes >> (8 * (choice & 7))) & 255;
    if ((choice & 8) != 0) byte = (byte & 128) != 0 ? 255 : 0;
    out |= byte << (8 * i);
  }
  return out;
}

// --- Floats.

inline float abs_bits(float x) { return bits_as<float>(bits_as<u32>(x) & 0x7fffffffU); }
inline double abs_bits(double x) { return bits_as<double>(bits_as<u64>(x) & 0x7fffffffffffffffULL); }
inline float neg_bits(float x) { return bits_as<float>(bits_as<u32>(x) ^ 0x80000000U); }
inline double neg_bits(double x) { return bits_as<double>(bits_as<u64>(x) ^ 0x8000000000000000ULL); }
inline float neighbour(float x) { return bits_as<float>(bits_as<u32>(x) + 1); }
inline double neighbour(double x) { return bits_as<double>(bits_as<u64>(x) + 1); }

// What arithmetic gives. In .f32 a GPU writes one NaN, whatever the operands' payloads.
inline float result(float x) { return x == x ? x : bits_as<float>(0x7fffffffU); }
inline double result(double x) { return x; }

// --- Memory.

template <typename T>
inline T get(const u8* at) {
  T value;
  __builtin_memcpy(&value, at, sizeof(value));
  return value;
}
template <typename T>
inline void put(u8* at, T value) {
  __builtin_memcpy(at, &value, sizeof(value));
}

inline void check_aligned(u64 at, u32 bytes, const char* what) {
  if (at % bytes != 0) fail(what, at, bytes);
}

inline const u8* ld_param(u64 at, u32 bytes) {
  const u64 begin = reinterpret_cast<u64>(running.parameters);
  if (at < begin || at + bytes > begin + running.parameter_bytes)
    fail("a load beyond the parameters", at - begin, bytes);
  check_aligned(at, bytes, "a load of parameters that is not aligned");
  return reinterpret_cast<const u8*>(at);
}

template <bool kStore>
inline u8* shared_access(u8* shared, u32 at, u32 bytes) {
  if (static_cast<u64>(at) + bytes > running.shared_bytes) fail("an access beyond shared memory", at, bytes);
  check_aligned(at, bytes, "an access to shared memory that is not aligned");
#if defined(TORCH_SSAM_PTX_SHADOW)
  note_shared(kStore, at, bytes);
#endif
  return shared + at;
}
inline const u8* ld_shared(u8* shared, u32 at, u32 bytes) { return shared_access<false>(shared, at, bytes); }
inline u8* st_shared(u8* shared, u32 at, u32 bytes) { return shared_access<true>(shared, at, bytes); }

template <bool kStore>
inline u8* global_access(u64 at, u32 bytes) {
  check_aligned(at, bytes, "an access to global memory that is not aligned");
#if defined(TORCH_SSAM_PTX_SHADOW)
  note_global(kStore, at, bytes);
#endif
  return reinterpret_cast<u8*>(at);
}
inline const u8* ld_global(u64 at, u32 bytes) { return global_access<false>(at, bytes); }
inline u8* st_global(u64 at, u32 bytes) { return global_access<true>(at, bytes); }

}  // namespace torch_ssam::ptx
