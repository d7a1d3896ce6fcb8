// Launches of translated kernels: see launcher.h. One thread of the host at a time, so that an order is an order.
#include "launcher.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <numeric>
#include <random>
#include <unordered_map>

namespace torch_ssam::ptx {
namespace {

std::vector<Kernel*>& kernels() {
  static std::vector<Kernel*> all;
  return all;
}

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

void write_log() {
  const std::string path = environment("TORCH_SSAM_PTX_LOG");
  if (path.empty()) return;
  std::string lines;
  for (const Kernel* kernel : kernels()) {
    if (kernel->launches == 0) continue;
    lines += std::string(kernel->name) + " " + std::to_string(kernel->launches) + " ";
    for (int i = 0; i < kernel->blocks; ++i) lines += kernel->covered[i] != 0 ? '1' : '0';
    lines += '\n';
  }
  std::FILE* file = std::fopen(path.c_str(), "a");
  if (file == nullptr || std::fwrite(lines.data(), 1, lines.size(), file) != lines.size() || std::fclose(file) != 0) {
    std::fprintf(stderr, "PTX: cannot write %s\n", path.c_str());
    std::_Exit(1);
  }
}

class Order {
 public:
  Order() {
    const std::string order = environment("TORCH_SSAM_PTX_ORDER");
    reverse_ = order == "reverse";
    shuffle_ = order.rfind("shuffle:", 0) == 0;
    if (shuffle_) random_.seed(std::stoull(order.substr(8)));
    if (!order.empty() && order != "forward" && !reverse_ && !shuffle_) fail("TORCH_SSAM_PTX_ORDER is not an order");
  }
  void arrange(std::vector<u32>& indices) {
    std::iota(indices.begin(), indices.end(), 0U);
    if (reverse_) std::reverse(indices.begin(), indices.end());
    if (shuffle_) std::shuffle(indices.begin(), indices.end(), random_);
  }

 private:
  bool reverse_ = false, shuffle_ = false;
  std::mt19937_64 random_;
};

// The parameters at an address that is aligned as the kernel asks, and no better.
class Parameters {
 public:
  const u8* place(const Kernel& kernel, const void* from) {
    memory_.resize(kernel.parameter_bytes + 2 * kLine);
    const u64 begin = (reinterpret_cast<u64>(memory_.data()) + kLine - 1) / kLine * kLine;
    u8* at = memory_.data() + (begin - reinterpret_cast<u64>(memory_.data())) + kernel.parameter_align % kLine;
    std::memcpy(at, from, kernel.parameter_bytes);
    return at;
  }

 private:
  static constexpr u64 kLine = 64;
  std::vector<u8> memory_;
};

struct alignas(16) Words {
  u64 word[2];
};

void run_block(const Kernel& kernel, Order& order, u64 junk) {
  static std::vector<u32> threads(kThreads);
  order.arrange(threads);
  if (!kernel.has_barriers) {
    for (const u32 thread : threads) {
      running.thread = thread;
      kernel.step(running.parameters, thread, static_cast<u32>(running.block), nullptr, nullptr, 0, junk);
    }
    return;
  }
  const u64 state_words = kernel.state_bytes / sizeof(Words) + 1;
  const Words all_junk{{junk, junk}};
  std::vector<Words> shared(kernel.shared_bytes / sizeof(Words) + 1, all_junk);
  std::vector<Words> states(state_words * kThreads, all_junk);
  std::vector<int> at(kThreads, 0);
#if defined(TORCH_SSAM_PTX_SHADOW)
  shadow_block(kernel.shared_bytes);
#endif
  for (running.stretch = 0;; ++running.stretch) {
    for (const u32 thread : threads) {
      running.thread = thread;
      at[thread] =
          kernel.step(running.parameters, thread, static_cast<u32>(running.block), reinterpret_cast<u8*>(shared.data()),
                      states.data() + state_words * thread, at[thread], junk);
    }
    if (std::any_of(at.begin(), at.end(), [&](int a) { return a != at[0]; })) {
      fail("threads of one block wait at different barriers");
    }
    if (at[0] < 0) return;
    order.arrange(threads);
  }
}

}  // namespace

Registration::Registration(Kernel* kernel) {
  if (kernels().empty()) std::atexit(write_log);
  kernels().push_back(kernel);
}

const std::vector<Kernel*>& all_kernels() { return kernels(); }

Kernel* find_kernel(const std::string& name) {
  static std::unordered_map<std::string, Kernel*> by_name;
  if (by_name.empty()) {
    for (Kernel* kernel : kernels()) by_name[kernel->name] = kernel;
  }
  const auto found = by_name.find(name);
  return found == by_name.end() ? nullptr : found->second;
}

void fail(const char* what, u64 first, u64 second) {
  std::fprintf(stderr, "PTX: %s (0x%llx, 0x%llx) in %s, block %lld, thread %u\n", what,
               static_cast<unsigned long long>(first), static_cast<unsigned long long>(second),
               running.kernel == nullptr ? "no kernel" : running.kernel->name, static_cast<long long>(running.block),
               running.thread);
  std::abort();
}

void launch(Kernel& kernel, const void* parameters, i64 bytes, i64 blocks) {
  static std::mutex one_at_a_time;
  static Order order;
  static Parameters placed;
  static const std::string junk_bits = environment("TORCH_SSAM_PTX_JUNK"),
                           mutant = environment("TORCH_SSAM_PTX_MUTANT");
  // Without a wish, a pattern that is NaN in every dtype.
  static const u64 junk = junk_bits.empty() ? 0xfff7fff7fff7fff7ULL : std::stoull(junk_bits, nullptr, 0);
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  running = {&kernel, nullptr, kernel.parameter_bytes, kernel.shared_bytes};
  if (static_cast<u64>(bytes) != kernel.parameter_bytes) {
    fail("the host's struct and the kernel's parameter differ in size", static_cast<u64>(bytes),
         kernel.parameter_bytes);
  }
  if (blocks <= 0 || blocks > 0x7fffffff) fail("no launch takes so many blocks", static_cast<u64>(blocks));
  if (mutant == kernel.name) {
    if (kernel.mutated == nullptr) fail("it has no mutant");
    *kernel.mutated = true;
  }
  running.parameters = placed.place(kernel, parameters);
  ++kernel.launches;
#if defined(TORCH_SSAM_PTX_SHADOW)
  shadow_launch();
#endif
  std::vector<u32> order_of_blocks(static_cast<size_t>(blocks));
  order.arrange(order_of_blocks);
  for (const u32 block : order_of_blocks) {
    running.block = block;
    running.stretch = 0;
    run_block(kernel, order, junk);
  }
  running = {};
}

}  // namespace torch_ssam::ptx
