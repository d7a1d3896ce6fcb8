// The options that every optimizer of this package has beside those of its update, as FUSED_OPTIONS in Python's
// optim/options.py. Tests: tests/cpp/test_api_errors.cpp, test_api_masters.cpp, tests/python/test_cpp_options.py.
#pragma once

#include <torch_ssam/noise/options.h>

// master_dtype: the clean weights and the state of BFloat16 and Half parameters stay in Float from step to step, so
// that updates and noise below half an ulp of a parameter count; parameters hold the rounding. What others write to a
// clean parameter counts, element by element. Stays as constructed, whatever a checkpoint says.
#define TORCH_SSAM_FUSED_OPTIONS(X)                                                    \
  X(bool, maximize, false, any(), "ascend instead of descend")                         \
  X(std::optional<double>, radius, std::nullopt, above(0),                             \
    "of the ball that the group's stacked weights are projected onto after each step") \
  X(std::optional<at::ScalarType>, master_dtype, std::nullopt, any(),                  \
    "at::kFloat for Float clean weights and state of 16-bit parameters")

namespace torch_ssam {

class FusedOptions : public NoiseOptions {
  TORCH_SSAM_PASS_OPTIONS(TORCH_SSAM_OPTION_MEMBER)
  TORCH_SSAM_FUSED_OPTIONS(TORCH_SSAM_OPTION_MEMBER)

 protected:
  void each(Visit visit) override {
    NoiseOptions::each(visit);
    TORCH_SSAM_PASS_OPTIONS(TORCH_SSAM_OPTION_LINE)
    TORCH_SSAM_FUSED_OPTIONS(TORCH_SSAM_OPTION_LINE)
  }
};

// All their setters, for a class `Derived`, which adds the options of its update with TORCH_SSAM_OPTIONS_OF_UPDATE.
template <typename Derived>
class FusedSetters : public NoiseSetters<Derived, FusedOptions> {
  using Self = Derived;
  using Base = NoiseSetters<Derived, FusedOptions>;

  TORCH_SSAM_PASS_OPTIONS(TORCH_SSAM_OPTION_OF_BASE)
  TORCH_SSAM_FUSED_OPTIONS(TORCH_SSAM_OPTION_OF_BASE)
};

}  // namespace torch_ssam

// Of a class `Self` that derives from FusedSetters: its own options, which have an `lr` among them.
#define TORCH_SSAM_OPTIONS_OF_UPDATE(Self_, LIST)              \
  using Self = Self_;                                          \
  LIST(TORCH_SSAM_OPTION_MEMBER)                               \
  LIST(TORCH_SSAM_OPTION_SETTER)                               \
                                                               \
 public:                                                       \
  double get_lr() const override { return lr_.value; }         \
  void set_lr(const double value) override { lr_.set(value); } \
                                                               \
 protected:                                                    \
  void each(Visit visit) override {                            \
    FusedOptions::each(visit);                                 \
    LIST(TORCH_SSAM_OPTION_LINE)                               \
  }
