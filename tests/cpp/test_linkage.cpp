// What the linker may do with the kernels compiled for different instruction sets, and how one is chosen at run time.
// An object built for AVX must define one symbol, its table's function, and nothing weak: the linker keeps any one copy
// of a weak function, and an AVX-512 copy would end in a crash on a machine without it. The plain object, seen through
// the disassembler, must hold no AVX instruction. CMake writes the list of objects (TORCH_SSAM_OBJECT_LIST).
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <regex>
#include <set>
#include <string>
#include <vector>

#include "kernel_calls.h"

namespace torch_ssam::cpu {
namespace {

std::vector<std::string> object_files() {
  std::ifstream list(TORCH_SSAM_OBJECT_LIST);
  std::vector<std::string> files;
  for (std::string line; std::getline(list, line);) {
    if (!line.empty()) files.push_back(line);
  }
  return files;
}

std::string variant_of(const std::string& object) {
  std::smatch match;
  return std::regex_search(object, match, std::regex("torch_ssam_kernels_([a-z0-9]+)")) ? match[1].str() : "";
}

// Lines that a command prints; the test fails where it cannot run.
std::vector<std::string> lines_of(const std::string& command) {
  std::vector<std::string> lines;
  FILE* pipe = popen(command.c_str(), "r");
  EXPECT_NE(pipe, nullptr) << command;
  if (pipe == nullptr) return lines;
  std::string line;
  for (int c = std::fgetc(pipe); c != EOF; c = std::fgetc(pipe)) {
    if (c == '\n') {
      lines.push_back(line);
      line.clear();
    } else {
      line.push_back(static_cast<char>(c));
    }
  }
  EXPECT_EQ(pclose(pipe), 0) << command;
  return lines;
}

TEST(LinkageTest, EveryVariantOfTheBuildIsListedOnce) {
  std::set<std::string> variants;
  for (const std::string& object : object_files()) EXPECT_TRUE(variants.insert(variant_of(object)).second) << object;
  EXPECT_TRUE(variants.count("plain")) << TORCH_SSAM_OBJECT_LIST;
#if defined(TORCH_SSAM_X86_VARIANTS)
  EXPECT_EQ(variants, (std::set<std::string>{"plain", "avx2", "avx512"}));
#endif
}

TEST(LinkageTest, EveryKernelObjectExportsItsTableAndNothingElse) {
  ASSERT_FALSE(object_files().empty());
  for (const std::string& object : object_files()) {
    std::vector<std::string> exported;
    for (const std::string& line : lines_of(std::string(TORCH_SSAM_NM) + " -C --defined-only \"" + object + "\"")) {
      // "address type name": upper case is global; V, v, W, w, u are weak or unique. DW.ref.*, under ThreadSanitizer,
      // is an address that unwinding needs, no code.
      std::smatch match;
      if (std::regex_match(line, match, std::regex("^[0-9a-f]* *([A-TVWXYZuvw]) (?!DW\\.ref\\.)(.*)$"))) {
        exported.push_back(match[1].str() + " " + match[2].str());
      }
    }
    const std::string name = "T torch_ssam::cpu::kernels_" + variant_of(object) + "()";
    EXPECT_EQ(exported, std::vector<std::string>{name}) << object;
  }
}

#if defined(TORCH_SSAM_X86_VARIANTS)
// Counts instructions on AVX registers or with AVX names.
int avx_instructions(const std::string& object) {
  const std::regex avx("\\t(v[a-z0-9]+ |.*%[yz]mm)");
  int count = 0;
  for (const std::string& line : lines_of(std::string(TORCH_SSAM_OBJDUMP) + " -d --no-show-raw-insn \"" + object +
                                          "\" | grep -e %ymm -e %zmm -e '\tv'"
                                          " || true")) {
    count += std::regex_search(line, avx) ? 1 : 0;
  }
  return count;
}

TEST(LinkageTest, ThePlainObjectHasNoAvxInstruction) {
  for (const std::string& object : object_files()) {
    if (variant_of(object) == "plain") {
      EXPECT_EQ(avx_instructions(object), 0) << object;
    } else {
      EXPECT_GT(avx_instructions(object), 100) << object;  // the search finds them where they are
    }
  }
}
#endif

// Each case in a process of its own: the environment is read once, at the first use.
class CapabilityDeathTest : public testing::Test {
 protected:
  void SetUp() override { testing::FLAGS_gtest_death_test_style = "threadsafe"; }
};

[[noreturn]] void report_choice(const char* wanted) {
  setenv("TORCH_SSAM_CPU_CAPABILITY", wanted, 1);
  const char* name = kernels().name;
  float values[100] = {};
  fill_noise(kernels(), {1, 2, 3, 4, 5, 6}, math::Distribution::gaussian, {0, 100}, values);
  std::fprintf(stderr, "chose %s, %s\n", name, values[99] != 0.0F ? "works" : "no noise");
  std::exit(0);
}

TEST_F(CapabilityDeathTest, TheEnvironmentForcesPlain) {
  EXPECT_EXIT(report_choice("plain"), testing::ExitedWithCode(0), "^chose plain, works\n$");
}

TEST_F(CapabilityDeathTest, AnUnknownNameIsReportedAndTheBestIsUsed) {
  EXPECT_EXIT(report_choice("sse9"), testing::ExitedWithCode(0),
              "TORCH_SSAM_CPU_CAPABILITY=sse9 is not one of plain, avx2, avx512.*\nchose (plain|avx2|avx512), works");
}

TEST_F(CapabilityDeathTest, AnEmptyNameMeansTheBest) {
  EXPECT_EXIT(report_choice(""), testing::ExitedWithCode(0), "^chose (plain|avx2|avx512), works\n$");
}

TEST(CapabilityTest, SelectingAnUnknownNameKeepsTheTable) {
  const Kernels* before = &kernels();
  EXPECT_FALSE(select_kernels("sse9"));
  EXPECT_FALSE(select_kernels(""));
  EXPECT_EQ(&kernels(), before);
}

}  // namespace
}  // namespace torch_ssam::cpu
