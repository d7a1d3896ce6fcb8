// The main of ptx_walks: every test of the host walks over translated kernels. TORCH_SSAM_PTX_TESTS=FILE appends a line
// for each test and kernel it launched, from which mutate.py takes what to run; with shadow memory a conflict fails the
// test that met it.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "launcher.h"

namespace torch_ssam::ptx {
namespace {

class Listener : public testing::EmptyTestEventListener {
 public:
  void OnTestStart(const testing::TestInfo&) override {
    launches_ = launches();
    conflicts_ = conflicts_so_far();
  }
  void OnTestEnd(const testing::TestInfo& info) override {
    if (conflicts_so_far() != conflicts_) ADD_FAILURE() << conflicts_so_far() - conflicts_ << " conflicts in memory";
    const char* path = std::getenv("TORCH_SSAM_PTX_TESTS");
    if (path == nullptr) return;
    std::FILE* file = std::fopen(path, "a");
    if (file == nullptr) return ADD_FAILURE() << "cannot write " << path, void();
    const std::vector<i64> now = launches();
    for (size_t k = 0; k < now.size(); ++k) {
      if (now[k] == launches_[k]) continue;
      std::fprintf(file, "%s.%s %s %lld\n", info.test_suite_name(), info.name(), all_kernels()[k]->name,
                   static_cast<long long>(info.result()->elapsed_time()));
    }
    std::fclose(file);
  }

 private:
  static std::vector<i64> launches() {
    std::vector<i64> counts;
    for (const Kernel* kernel : all_kernels()) counts.push_back(kernel->launches);
    return counts;
  }
  static i64 conflicts_so_far() {
#if defined(TORCH_SSAM_PTX_SHADOW)
    return conflicts();
#else
    return 0;
#endif
  }
  std::vector<i64> launches_;
  i64 conflicts_ = 0;
};

}  // namespace
}  // namespace torch_ssam::ptx

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  testing::UnitTest::GetInstance()->listeners().Append(new torch_ssam::ptx::Listener);
  return RUN_ALL_TESTS();
}
