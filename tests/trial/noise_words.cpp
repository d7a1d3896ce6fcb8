// Writes raw Threefry words to standard output, 32 bits each in the machine's byte order, until the reader closes the
// pipe: what `dieharder -g 200` and other suites read.
//   noise_words <elements|draws|places|samples|seeds|training> [--reversed]
#include <csignal>
#include <cstdio>
#include <vector>

#include "word_sequence.h"

int main(int argc, char** argv) {
  using torch_ssam::trial::WordSequence;
  WordSequence sequence(argc > 1 ? argv[1] : "");
  const bool reversed = argc == 3 && std::strcmp(argv[2], "--reversed") == 0;
  if (!sequence.known() || (argc > 2 && !reversed)) {
    std::fprintf(stderr, "usage: noise_words ORDER [--reversed], where ORDER is one of %s\n", WordSequence::kOrders);
    return 2;
  }
  std::signal(SIGPIPE, SIG_IGN);
  std::vector<uint32_t> words(1 << 14);
  do {
    for (uint32_t& word : words) word = reversed ? torch_ssam::trial::reversed_bits(sequence.next()) : sequence.next();
  } while (std::fwrite(words.data(), sizeof(uint32_t), words.size(), stdout) == words.size());
  return 0;
}
