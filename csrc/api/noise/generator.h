// The generator of the noise: (seed, draw) on every device that has parameters. A device's tensor moves on that device,
// where a replayed CUDA graph moves it too. Tests: tests/cpp/test_api_noise.cpp, test_api_state.cpp.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace torch_ssam::detail {

class Generator {
 public:
  explicit Generator(std::int64_t seed) : seed_(seed) {}

  std::int64_t seed() const { return seed_; }
  std::int64_t draw() const;  // in use while perturbed, else the next
  void set(std::int64_t seed, std::int64_t draw);
  void advance();  // to the next draw

  at::Tensor on(at::Device device);  // (seed, draw)

 private:
  std::int64_t seed_;
  std::int64_t draw_ = 0;
  std::vector<at::Tensor> tensors_;  // one a device
};

}  // namespace torch_ssam::detail
