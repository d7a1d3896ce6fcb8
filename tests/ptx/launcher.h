// Runs translated kernels: a launch walks the grid in an order of one's choice, all threads of a block to each barrier
// before the next stretch. Environment: TORCH_SSAM_PTX_ORDER=forward (default), reverse or shuffle:SEED;
// TORCH_SSAM_PTX_JUNK=BITS, what registers and shared memory hold that nobody wrote; TORCH_SSAM_PTX_LOG=FILE, to which
// the process appends at its end a line for each kernel that it launched: name, launches, and a 0 or 1 for every basic
// block; TORCH_SSAM_PTX_MUTANT=NAME, the kernel whose mutant is in force. Tests: tests/ptx/test_launcher.cpp.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace torch_ssam::ptx {

using u8 = uint8_t;
using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;
using i8 = int8_t;
using i16 = int16_t;
using i32 = int32_t;
using i64 = int64_t;

inline constexpr u32 kThreads = 256;

struct Kernel {
  const char* name;
  // Runs a thread to its end or the next barrier; gives kDone or the barrier.
  int (*step)(const u8* parameters, u32 thread, u32 block, u8* shared, void* state, int at, u64 junk);
  u64 parameter_bytes, parameter_align, shared_bytes, state_bytes;
  bool has_barriers;
  u8* covered;  // a byte for each basic block
  int blocks;
  bool* mutated;  // null where it has no mutant
  const char* mutation;
  i64 launches = 0;
};

struct Registration {
  explicit Registration(Kernel* kernel);
};

// The launch under way.
struct Running {
  const Kernel* kernel = nullptr;
  const u8* parameters = nullptr;
  u64 parameter_bytes = 0, shared_bytes = 0;
  i64 block = 0;
  u32 thread = 0;
  int stretch = 0;  // how many barriers lie behind the block
};
inline Running running;

// Says what is wrong, in which kernel, block and thread, and ends the process.
[[noreturn]] void fail(const char* what, u64 first = 0, u64 second = 0);

void launch(Kernel& kernel, const void* parameters, i64 bytes, i64 blocks);

// Null where no kernel has that name.
Kernel* find_kernel(const std::string& name);
const std::vector<Kernel*>& all_kernels();

// --- Shadow memory (shadow.cpp), for builds with TORCH_SSAM_PTX_SHADOW.

void note_global(bool store, u64 at, u32 bytes);
void note_shared(bool store, u32 at, u32 bytes);
void shadow_launch();
void shadow_block(u64 shared_bytes);
// Memory that no kernel may touch, until it is allowed again; memory that no kernel may read before one wrote to it.
void forbid(const void* at, u64 bytes, bool on);
void undefined(const void* at, u64 bytes);
// Races, reads of what nobody wrote and touches of forbidden memory so far; each of the first twenty is printed.
i64 conflicts();

}  // namespace torch_ssam::ptx
