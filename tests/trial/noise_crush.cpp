// TestU01's batteries on the raw Threefry words of the noise contract (P. L'Ecuyer and R. Simard, ACM TOMS 33, 2007).
//   noise_crush <small|crush|big> <elements|draws|places|samples|seeds|training> [--reversed]
// Exit code 1 where a p-value falls outside [1e-10, 1 - 1e-10], TestU01's own mark of clear failure; its summary also
// names those outside [0.001, 0.999], of which a perfect generator has one in 500 statistics.
#include <cstdio>

extern "C" {
#include <bbattery.h>
#include <swrite.h>
#include <unif01.h>
}

#include "word_sequence.h"

namespace {

using torch_ssam::trial::WordSequence;

struct State {
  WordSequence sequence;
  bool reversed;
};

unsigned long next_bits(void*, void* state) {
  auto* s = static_cast<State*>(state);
  const uint32_t word = s->sequence.next();
  return s->reversed ? torch_ssam::trial::reversed_bits(word) : word;
}
double next_uniform(void* parameter, void* state) { return static_cast<double>(next_bits(parameter, state)) * 0x1p-32; }
void write_state(void*) {}

}  // namespace

int main(int argc, char** argv) {
  State state{WordSequence(argc > 2 ? argv[2] : ""), argc == 4 && std::strcmp(argv[3], "--reversed") == 0};
  const char* battery = argc > 2 ? argv[1] : "";
  const bool small = std::strcmp(battery, "small") == 0, crush = std::strcmp(battery, "crush") == 0;
  if (!state.sequence.known() || (argc == 4 && !state.reversed) || argc > 4 ||
      (!small && !crush && std::strcmp(battery, "big") != 0)) {
    std::fprintf(stderr, "usage: noise_crush small|crush|big ORDER [--reversed], where ORDER is one of %s\n",
                 WordSequence::kOrders);
    return 2;
  }
  char name[128];
  std::snprintf(name, sizeof(name), "Threefry4x32-20, order %s%s", argv[2], state.reversed ? ", bits reversed" : "");
  unif01_Gen generator{};
  generator.state = &state;
  generator.name = name;
  generator.GetU01 = next_uniform;
  generator.GetBits = next_bits;
  generator.Write = write_state;
  swrite_Basic = FALSE;  // the summary only
  if (small) {
    bbattery_SmallCrush(&generator);
  } else if (crush) {
    bbattery_Crush(&generator);
  } else {
    bbattery_BigCrush(&generator);
  }
  int failures = 0;
  for (int i = 0; i < bbattery_NTests; ++i) {
    const double p = bbattery_pVal[i];
    if (p >= 0.0 && (p < 1e-10 || p > 1.0 - 1e-10)) ++failures;
  }
  std::printf("%s: %d statistics, %d outside [1e-10, 1 - 1e-10]\n", name, bbattery_NTests, failures);
  return failures == 0 ? 0 : 1;
}
