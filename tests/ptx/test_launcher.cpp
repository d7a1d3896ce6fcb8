// The translator and the launcher on kernels written by hand (data/by_hand.ptx): PTX's functions have the values that
// its ISA gives them, a block's threads meet at barriers in any order, and each fault that is to be found is found, by
// the launcher or, in ptx_launcher_shadow, by shadow memory.
#include <gtest/gtest.h>

#include <cstdlib>
#include <numeric>

#include "launcher.h"

extern "C" {
using torch_ssam::ptx::i64;
void functions(const void*, i64, i64);
void sum(const void*, i64, i64);
void race(const void*, i64, i64);
void no_barrier(const void*, i64, i64);
void two_barriers(const void*, i64, i64);
void misaligned(const void*, i64, i64);
void copy(const void*, i64, i64);
}

namespace torch_ssam::ptx {
namespace {

struct Parameters {
  u32* memory;
};

TEST(PtxTranslation, FunctionsHaveTheValuesOfTheIsa) {
  std::vector<u32> out(16, 1);
  const Parameters parameters{out.data()};
  functions(&parameters, sizeof(parameters), 1);
  const u32 expected[] = {0xabcdef01,  // the high word of (0x9abcdef0, 0x12345678) << 4: the distance counts modulo 32
                          0x00fff078,  // of the bytes 78 56 34 12 f0 de bc 9a: 0 and 4, then the signs of 7 and of 0
                          0,           // shifts by the width or more leave nothing
                          0xffffffff,  // or copies of the sign
                          0xfffffffd,  // -7 / 2 towards zero
                          9,           // 4294967289 mod 10
                          3,
                          0xdef0 * 3,
                          15,  // the sign was extended
                          0x9abcdef0 - 0x12345678,
                          7,           // NaN is unordered
                          0x7fffffff,  // the one NaN that arithmetic gives
                          0x28800000,  // (1 + 2^-23)^2 - (1 + 2^-22) = 2^-46
                          0x3f800000,  // 1 + 2^-25 to nearest
                          0xffc00123,  // signs are bits, of NaN too
                          0x7fc00123};
  for (size_t i = 0; i < out.size(); ++i) EXPECT_EQ(out[i], expected[i]) << "function " << i;
}

TEST(PtxLauncher, ThreadsMeetAtBarriersAndBlocksAreAllRun) {
  std::vector<u32> out(7, 0);
  const Parameters parameters{out.data()};
  sum(&parameters, sizeof(parameters), static_cast<i64>(out.size()));
  EXPECT_EQ(out, std::vector<u32>(7, 256 * 257 / 2));
  EXPECT_EQ(conflicts(), 0);
  EXPECT_EQ(find_kernel("sum")->launches, 1);
  EXPECT_EQ(find_kernel("nothing"), nullptr);
  EXPECT_EQ(all_kernels().size(), 7U);
}

TEST(PtxLauncher, BlocksThatRanAreMarkedAndOthersAreNot) {
  std::vector<u32> out(16, 0);
  const Parameters parameters{out.data()};
  functions(&parameters, sizeof(parameters), 1);
  const Kernel& kernel = *find_kernel("functions");
  // Entry, after the branch, the instruction under @!%p2, which is true, and the end.
  ASSERT_EQ(kernel.blocks, 4);
  EXPECT_EQ(std::vector<int>(kernel.covered, kernel.covered + 4), (std::vector<int>{1, 1, 0, 1}));
}

TEST(PtxLauncher, FaultsOfALaunchEndTheProcess) {
  std::vector<u32> memory(512, 1);
  const Parameters parameters{memory.data()};
  EXPECT_DEATH(sum(&parameters, 16, 1), "differ in size");
  EXPECT_DEATH(sum(&parameters, sizeof(parameters), 0), "no launch takes so many blocks");
  EXPECT_DEATH(sum(&parameters, sizeof(parameters), i64{1} << 31), "no launch takes so many blocks");
  EXPECT_DEATH(two_barriers(&parameters, sizeof(parameters), 1), "wait at different barriers.*two_barriers");
  EXPECT_DEATH(misaligned(&parameters, sizeof(parameters), 1), "not aligned.*misaligned, block 0, thread 0");
  memory[0] = 0;
  EXPECT_DEATH(misaligned(&parameters, sizeof(parameters), 1), "division by zero");
}

TEST(PtxLauncher, AnUnknownOrderIsRefused) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";  // a new process, which has not read its order yet
  std::vector<u32> out(1);
  const Parameters parameters{out.data()};
  EXPECT_DEATH(
      {
        setenv("TORCH_SSAM_PTX_ORDER", "sideways", 1);
        sum(&parameters, sizeof(parameters), 1);
      },
      "is not an order");
}

#if defined(TORCH_SSAM_PTX_SHADOW)
i64 found(void (*kernel)(const void*, i64, i64), std::vector<u32>& memory) {
  const Parameters parameters{memory.data()};
  const i64 before = conflicts();
  kernel(&parameters, sizeof(parameters), 1);
  return conflicts() - before;
}

TEST(PtxShadow, RacesInGlobalAndSharedMemoryAreFound) {
  std::vector<u32> memory(512, 0);
  EXPECT_EQ(found(sum, memory), 0);
  EXPECT_EQ(found(copy, memory), 0);
  EXPECT_EQ(found(race, memory), 4 * 255);  // a conflict a byte, of every thread but the first
  EXPECT_GE(found(no_barrier, memory), 4 * 128);
}

TEST(PtxShadow, OneLaunchFollowsAnother) {
  std::vector<u32> memory(512, 0);
  EXPECT_EQ(found(copy, memory), 0);
  EXPECT_EQ(found(copy, memory), 0);
}

TEST(PtxShadow, WhatNobodyWroteAndWhatIsForbiddenIsFound) {
  std::vector<u32> memory(512, 0);
  undefined(memory.data() + 10, 8);
  EXPECT_EQ(found(copy, memory), 8);
  forbid(memory.data() + 256, 4, true);
  EXPECT_EQ(found(copy, memory), 4 + 8);
  forbid(memory.data() + 256, 4, false);
  EXPECT_EQ(found(copy, memory), 8);
}
#endif

}  // namespace
}  // namespace torch_ssam::ptx
