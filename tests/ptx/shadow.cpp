// Shadow memory of translated kernels: for every byte who wrote and who read it last, and between which barriers. Two
// accesses of a launch, one of them a store, are a race unless one thread makes both or a barrier of its block lies
// between; blocks are never ordered. Reported too: shared memory read before the block wrote it, global memory that a
// test said is undefined, and guards round a test's operands. One launch follows another, so an epoch forgets. Tests:
// test_launcher.cpp.
#include <cstdio>
#include <memory>
#include <unordered_map>

#include "launcher.h"

namespace torch_ssam::ptx {
namespace {

struct Who {
  i32 thread = -1;  // of the grid
  i32 stretch = -1;
};

struct Byte {
  u32 epoch = 0;
  bool forbidden = false, undefined = false;
  Who writer, reader, other_reader;
};

constexpr u64 kPage = 4096;
struct Page {
  Byte bytes[kPage];
};

u32 epoch = 0;
i64 found = 0;
std::vector<Byte> shared_bytes;

Byte& global_byte(u64 at) {
  static std::unordered_map<u64, std::unique_ptr<Page>> pages;
  static u64 last = ~u64{0};
  static Page* page = nullptr;
  if (at / kPage != last) {
    last = at / kPage;
    auto& slot = pages[last];
    if (slot == nullptr) slot = std::make_unique<Page>();
    page = slot.get();
  }
  Byte& byte = page->bytes[at % kPage];
  if (byte.epoch != epoch) {
    byte.epoch = epoch;
    byte.writer = byte.reader = byte.other_reader = {};
  }
  return byte;
}

// Whether this thread comes after what another did.
bool ordered(const Who& other, i32 thread) {
  return other.thread < 0 || other.thread == thread ||
         (other.thread / kThreads == running.block && other.stretch < running.stretch);
}

void report(const char* what, const char* memory, bool store, u64 at, const Byte& byte) {
  if (++found > 20) return;
  std::fprintf(stderr, "PTX: %s: a %s of %s byte 0x%llx in %s, block %lld, thread %u; writer %lld, reader %lld\n", what,
               store ? "store" : "load", memory, static_cast<unsigned long long>(at), running.kernel->name,
               static_cast<long long>(running.block), running.thread, static_cast<long long>(byte.writer.thread),
               static_cast<long long>(byte.reader.thread));
}

void note(Byte& byte, const char* memory, bool store, u64 at, bool known) {
  const auto thread = static_cast<i32>(running.block * kThreads + running.thread);
  if (byte.forbidden) report("outside the operands", memory, store, at, byte);
  bool race = !ordered(byte.writer, thread);
  if (store) race = race || !ordered(byte.reader, thread) || !ordered(byte.other_reader, thread);
  if (race) report("a race", memory, store, at, byte);
  if (!store && !known && byte.writer.thread < 0) report("read before it was written", memory, store, at, byte);
  if (store) {
    byte.writer = {thread, running.stretch};
    byte.undefined = false;
  } else {
    if (byte.reader.thread >= 0 && byte.reader.thread != thread) byte.other_reader = byte.reader;
    byte.reader = {thread, running.stretch};
  }
}

}  // namespace

void note_global(bool store, u64 at, u32 bytes) {
  for (u64 i = at; i < at + bytes; ++i) {
    Byte& byte = global_byte(i);
    note(byte, "global", store, i, !byte.undefined);
  }
}

void note_shared(bool store, u32 at, u32 bytes) {
  for (u32 i = at; i < at + bytes; ++i) note(shared_bytes[i], "shared", store, i, false);
}

void shadow_launch() { ++epoch; }
void shadow_block(u64 bytes) { shared_bytes.assign(bytes, Byte{}); }

#if defined(TORCH_SSAM_PTX_SHADOW)
void forbid(const void* at, u64 bytes, bool on) {
  for (u64 i = 0; i < bytes; ++i) {
    Byte& byte = global_byte(reinterpret_cast<u64>(at) + i);
    byte.forbidden = on;
    byte.undefined = false;
  }
}
void undefined(const void* at, u64 bytes) {
  for (u64 i = 0; i < bytes; ++i) global_byte(reinterpret_cast<u64>(at) + i).undefined = true;
}
#else
void forbid(const void*, u64, bool) {}
void undefined(const void*, u64) {}
#endif

i64 conflicts() { return found; }

}  // namespace torch_ssam::ptx
