// The state behind every perturbation: which tensors are perturbed now, their clean copies, seed and draw.
// SSAM and WeightNoise are fronts over one NoiseState, as in Python's noise/state.py, whose order of operator calls
// this follows, so that the bits agree. A tensor's place is its position over all groups, frozen ones counted.
#pragma once

#include <torch_ssam/perturbation.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "gradient_watch.h"
#include "operators.h"

namespace torch_ssam::detail {

struct Members {
  std::vector<at::Tensor> params;
  std::vector<std::int64_t> places;
  void push_back(const at::Tensor& param, std::int64_t place) {
    params.push_back(param);
    places.push_back(place);
  }
};

// The noise of one parameter group: what the operators are told, and what they are not.
struct GroupNoise {
  ops::Noise noise;
  std::string scale = "isotropic";  // as the options name it
  bool regenerate = false;
  bool masters = false;  // 16-bit tensors have Float clean weights that last
  double fisher_factor = 0;
  std::function<at::Tensor(const at::Tensor&)> fisher_of = {};  // F of a tensor's filters
};

// The filters of a tensor: dimension 0, or the whole tensor where it has less than two.
inline std::int64_t rows_of(const at::Tensor& param) { return param.dim() < 2 ? 1 : param.size(0); }

// Whether a scale is one number for each row, computed from the weights.
inline bool is_by_rows(const std::string& scale) { return scale == "tensor" || scale == "filter" || scale == "fisher"; }

class NoiseState {
 public:
  explicit NoiseState(std::int64_t seed) : seed_(seed) {}

  std::int64_t seed() const { return seed_; }
  std::int64_t draw() const;
  void set_generator(std::int64_t seed, std::int64_t draw);
  at::Tensor generator(at::Device device);
  void advance();

  bool active() const { return applied_ > 0; }
  std::int64_t changes() const { return changes_; }  // moves whenever the set of perturbed tensors may have changed
  bool is_applied(const at::Tensor& param) const;
  bool is_regenerated(const at::Tensor& param) const;  // perturbed, and without a copy
  // The saved copy while perturbed (without one a new tensor), else the tensor itself.
  at::Tensor clean_of(const at::Tensor& param) const;
  std::vector<at::Tensor> clean_of(const std::vector<at::Tensor>& params) const;

  // Noise on these tensors: clean ones are saved first, perturbed ones are written anew from their copy. With
  // `regenerate` there is no copy: restoring draws the noise again and takes it off.
  void apply(const Members& members, const GroupNoise& group);
  void apply_from_clean(const Members& members, const GroupNoise& group);
  // Warns, in a group's first pass and again where its noise_std has doubled, of tensors with two or more dimensions
  // whose isotropic noise is above half of their root mean square weight. As noise/size.py in Python.
  void look_at_size(const Members& members, const GroupNoise& group);
  // The noise that the clean weights of a tensor would get now, in its dtype.
  at::Tensor noise_of(const at::Tensor& param, std::int64_t place, const GroupNoise& group);
  // Tells autograd that these tensors changed, and remembers them as we left them if they are perturbed.
  void written(const std::vector<at::Tensor>& params);

  // Masters: Float clean weights of 16-bit tensors, which last. A tensor holds the rounding of its master, or of master
  // + noise.
  bool has_master(const at::Tensor& param, bool wanted) const;
  // Taken from the tensor where there is none, and in each element that somebody else wrote.
  at::Tensor master_of(const at::Tensor& param);
  const at::Tensor& known_master(const at::Tensor& param) const;  // undefined where there is none
  void set_master(const at::Tensor& param, at::Tensor master);
  void forget_masters(const std::vector<at::Tensor>& params);  // of tensors that are to have none any more

  // Puts the exact clean bits back. Tensors that someone else wrote to keep what was written; these are named in the
  // result, which is empty where there are none.
  [[nodiscard]] std::string restore();
  void restore(const std::vector<at::Tensor>& params);  // throws PerturbedWeightsChanged instead
  void restore_frozen();
  void restore_regenerated();  // those without a copy
  bool changed() const;

 private:
  // How noise was made, with a generator of its own that nobody moves.
  struct Recipe {
    at::Tensor generator;
    ops::Noise noise;
  };

  struct Slot {
    at::Tensor param, clean;
    std::shared_ptr<const Recipe> recipe;  // in place of a clean copy
    std::int64_t place = 0;
    bool applied = false;
    std::uint32_t version = 0;
    const void* data = nullptr;
    at::Tensor row_scales;
    at::Tensor master;     // `clean` is the same tensor while it is in use
    bool rounded = false;  // clean, holding the rounding of the master as we left it
    bool uses_master() const { return applied && master.defined() && clean.is_same(master); }
    void note();
    bool is_as_we_left_it() const;
    const at::Tensor& copy();  // `clean`, made to fit
  };

  Slot& slot_of(const at::Tensor& param);
  const Slot* find(const at::Tensor& param) const;
  ops::Noise scaled(const GroupNoise& group, const std::vector<at::Tensor>& params,
                    const std::vector<at::Tensor>& clean);
  void save_and_perturb(const Members& members, const GroupNoise& group);
  void perturb_masters(const Members& members, const GroupNoise& group);
  void perturb_in_place(const Members& members, ops::Noise noise);
  void note_applied(const Members& members);
  std::string restore_slots(const std::vector<Slot*>& slots);

  std::int64_t seed_;
  std::int64_t draw_ = 0;
  std::vector<at::Tensor> generators_;  // one a device
  std::vector<Slot> slots_;
  std::unordered_map<const c10::TensorImpl*, std::size_t> index_;
  std::unordered_map<std::int64_t, double> size_limits_;  // by a group's first place: looked at up to this noise_std
  std::size_t applied_ = 0;
  std::int64_t changes_ = 0;
};

// The members split by device; nearly always one part.
void for_each_device(const Members& members, const std::function<void(at::Device, const Members&)>& visit);

[[noreturn]] void throw_changed(const std::string& message);

// A warning where nothing may be thrown, as a program's own handler of warnings might.
void warn_quietly(const std::string& message) noexcept;

// What an optimizer and the passes that it hands out share; outlives either.
struct Drive {
  explicit Drive(std::int64_t seed) : noise(seed) {}
  NoiseState noise;
  SSAM* owner = nullptr;  // follows moves; null once it is gone, and for WeightNoise
  bool inside_pass = false;
  bool fresh = false;                  // a gradient at perturbed weights since the last step
  GradientWatch watch;                 // of the pass that is open, while nothing is fresh
  bool pass_without_gradient = false;  // a pass since the last step has changed no gradient
  bool training = false;               // keep_perturbed, between train() and eval()
  bool pending = false;                // loaded clean weights wait to be written
  std::int64_t noted = 0;              // NoiseState::changes when the optimizer's state last named the clean weights
  std::string changed;                 // what a destructor could not throw
};

}  // namespace torch_ssam::detail
