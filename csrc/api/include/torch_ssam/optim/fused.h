// The base of SSAM and of its relatives with other updates: clean weights updated and perturbed anew in one pass over
// memory. A class names its update rule (csrc/math), the state that the rule keeps of each parameter, and its numbers;
// everything else is here and in base.h, once. Python's twin is optim/fused.py. Tests: tests/cpp/test_api_fused.cpp.
#pragma once

#include <torch_ssam/optim/base.h>

#include <cstddef>
#include <vector>

namespace torch_ssam {

namespace ops {
struct Update;
}  // namespace ops

class FusedOptimizer : public NoiseDriver {
 protected:
  using NoiseDriver::NoiseDriver;

  // What a class says of its rule: how many of its state's buffers it keeps with these options, and the rule with its
  // numbers as the operators take them.
  virtual std::size_t count_buffers(const FusedOptions& options) const = 0;
  virtual ops::Update update_of(const FusedOptions& options) const = 0;

  void update() override;
  void update_and_perturb() override;

 private:
  struct Part;
  void check_before_update() const;
  std::vector<Part> parts_of(const FusedOptions& options, const detail::Members& members);
  void keep_state(const Part& part);
  void update_parts(const FusedOptions& options, const detail::Members& members);
  void update_group(const FusedOptions& options, const detail::Members& members);
  void clip(const FusedOptions& options, const detail::Members& members);
  void project(const FusedOptions& options, const detail::Members& stacked);
  template <typename Change>
  void change_clean(const FusedOptions& options, const detail::Members& members, const Change& change);
  void observe(const FusedOptions& options, const detail::Members& members);
};

}  // namespace torch_ssam
