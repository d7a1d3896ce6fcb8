// What SSAM saves and loads: options, momentum, clean weights while kept perturbed, Fisher sums, seed and draw.
// LibTorch's archives through the same template as torch::optim::SGD, and the layout of Python's state_dict. A load
// that fails leaves the optimizer as it was. Tests: tests/cpp/test_api_state.cpp, tests/python/test_cpp_parity.py.
#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>
#include <torch/optim/serialize.h>
#include <torch/serialize/archive.h>

#include "noise/scope.h"
#include "optim/options.h"
#include "pickled.h"

namespace torch_ssam {

using detail::Dict;

namespace {

const char* const kSeed = "seed";
const char* const kDraw = "draw";

bool same_tensor(const at::Tensor& a, const at::Tensor& b) {
  return a.defined() == b.defined() && (!a.defined() || at::equal(a, b));
}

void write_tensor(torch::serialize::OutputArchive& archive, const char* name, const at::Tensor& tensor) {
  if (tensor.defined()) archive.write(name, c10::IValue(tensor));
}

void read_tensor(torch::serialize::InputArchive& archive, const char* name, at::Tensor& tensor) {
  c10::IValue value;
  if (archive.try_read(name, value)) tensor = value.toTensor();
}

}  // namespace

// --- state of one parameter

void SSAMParamState::serialize(torch::serialize::OutputArchive& archive) const {
  write_tensor(archive, "momentum_buffer", momentum_buffer_);
  write_tensor(archive, "clean", clean_);
  write_tensor(archive, "fisher", fisher_);
  write_tensor(archive, "master", master_);
}

void SSAMParamState::serialize(torch::serialize::InputArchive& archive) {
  read_tensor(archive, "momentum_buffer", momentum_buffer_);
  read_tensor(archive, "clean", clean_);
  read_tensor(archive, "fisher", fisher_);
  read_tensor(archive, "master", master_);
}

bool operator==(const SSAMParamState& a, const SSAMParamState& b) {
  return same_tensor(a.momentum_buffer(), b.momentum_buffer()) && same_tensor(a.clean(), b.clean()) &&
         same_tensor(a.fisher(), b.fisher()) && same_tensor(a.master(), b.master());
}

// --- clean weights in the state

// Names the clean copy of every perturbed tensor in the state, and of no other. Without copies they are made only to be
// saved.
void SSAM::note_clean(bool regenerated_too) {
  drive_->noted = drive_->noise.changes();
  for (const auto& group : param_groups_) {
    for (const at::Tensor& p : group.params()) {
      const bool regenerated = drive_->noise.is_regenerated(p);
      if (drive_->noise.is_applied(p) && (regenerated_too || !regenerated)) {
        state_of(p).clean() = drive_->noise.clean_of(p);
      } else if (state_.find(p.unsafeGetTensorImpl()) != state_.end()) {
        state_of(p).clean().reset();
        if (state_of(p).empty()) state_.erase(p.unsafeGetTensorImpl());
      }
      if (regenerated) drive_->noted = -1;
    }
  }
}

// Names the masters and the sums of scale "fisher" in the state.
void SSAM::note_masters_and_sums() {
  for (const auto& group : param_groups_) {
    for (const at::Tensor& p : group.params()) {
      const at::Tensor master = drive_->noise.known_master(p), fisher = drive_->noise.scales.known_fisher(p);
      const bool known = state_.find(p.unsafeGetTensorImpl()) != state_.end();
      if (!known && !master.defined() && !fisher.defined()) continue;
      state_of(p).master() = master;
      state_of(p).fisher() = fisher;
    }
  }
}

void SSAM::note_clean_to_save() {
  note_masters_and_sums();
  if (!drive_->pending && drive_->noted != drive_->noise.changes()) note_clean(/*regenerated_too=*/true);
}

void SSAM::forget_regenerated() {
  if (!drive_->pending && drive_->noted == -1) note_clean();
}

// Writes clean weights that a load brought.
void SSAM::settle() {
  if (!drive_->pending) return;
  const at::NoGradGuard no_grad;
  drive_->pending = false;
  for (const auto& group : param_groups_) {
    for (const at::Tensor& p : group.params()) {
      const auto found = state_.find(p.unsafeGetTensorImpl());
      if (found == state_.end()) continue;
      const at::Tensor clean = state_of(p).clean();
      if (clean.defined()) at::Tensor(p).copy_(clean);
    }
  }
  note_clean();
}

// --- save and load

template <typename Self, typename Archive>
void SSAM::serialize(Self& self, Archive& archive) {
  torch::optim::serialize<SSAMParamState, SSAMOptions>(archive, self);
}

void SSAM::save(torch::serialize::OutputArchive& archive) const {
  auto* self = const_cast<SSAM*>(this);
  self->note_clean_to_save();
  serialize(*this, archive);
  self->forget_regenerated();
  archive.write(kSeed, c10::IValue(seed()));
  archive.write(kDraw, c10::IValue(draw()));
}

void SSAM::check_may_load() const {
  TORCH_CHECK(!drive_->inside_pass, "torch_ssam: load inside perturb(): leave it first.");
}

// Checks what came, then takes it over.
void SSAM::finish_load(std::optional<std::int64_t> seed, std::optional<std::int64_t> draw) {
  bool pending = false;
  for (std::size_t g = 0; g < param_groups_.size(); ++g) {
    detail::check_options(options_of(g));
    check_common(options_of(g), first_options());
    for (const at::Tensor& p : param_groups_[g].params()) {
      const auto found = state_.find(p.unsafeGetTensorImpl());
      if (found == state_.end()) continue;
      SSAMParamState& state = state_of(p);
      const bool mastered = drive_->noise.has_master(p, options_of(g).master_dtype().has_value());
      if (!mastered) state.master().reset();
      for (at::Tensor* tensor : {&state.momentum_buffer(), &state.clean(), &state.master()}) {
        if (!tensor->defined()) continue;
        const at::ScalarType dtype = mastered && tensor != &state.clean() ? at::kFloat : p.scalar_type();
        TORCH_CHECK_VALUE(tensor->sizes() == p.sizes(), "torch_ssam: the saved state has shape ", tensor->sizes(),
                          " where the parameter has ", p.sizes(), "; expected a checkpoint of the same model.");
        *tensor = tensor->to(p.device(), dtype);
        if (tensor->strides() != p.strides()) *tensor = at::empty_like(p, p.options().dtype(dtype)).copy_(*tensor);
      }
      pending |= state.clean().defined();
      if (state.fisher().defined()) {
        TORCH_CHECK_VALUE(state.fisher().numel() == detail::rows_of(p), "torch_ssam: the saved state has ",
                          state.fisher().numel(), " Fisher sums for a parameter of shape ", p.sizes(), "; expected ",
                          detail::rows_of(p), ", one for each filter.");
        state.fisher() = state.fisher().to(p.device(), at::kFloat).reshape({-1}).contiguous();
      }
      if (state.empty()) state_.erase(p.unsafeGetTensorImpl());
    }
  }
  // A model loaded before its optimizer has written to weights that were kept perturbed: go on with those.
  (void)drive_->noise.restore();
  for (const auto& group : param_groups_) {
    for (const at::Tensor& p : group.params()) {
      const auto found = state_.find(p.unsafeGetTensorImpl());
      drive_->noise.set_master(p, found == state_.end() ? at::Tensor() : state_of(p).master());
      drive_->noise.scales.set_fisher(p, found == state_.end() ? at::Tensor() : state_of(p).fisher());
    }
  }
  drive_->noted = drive_->noise.changes();
  drive_->training = false;
  drive_->pending = pending;
  drive_->fresh = false;
  drive_->changed.clear();
  if (seed && draw) drive_->noise.generator.set(*seed, *draw);
}

namespace {

// Puts groups' options and state back unless the load came through.
template <typename Groups, typename State>
struct Backup {
  Backup(Groups& groups_in, State& state_in) : groups(groups_in), state(state_in) {
    for (auto& group : groups) options.push_back(group.options().clone());
    old_state = std::move(state);
    state = State();
  }
  ~Backup() {
    if (done) return;
    for (std::size_t g = 0; g < options.size(); ++g) groups[g].set_options(std::move(options[g]));
    state = std::move(old_state);
  }
  Groups& groups;
  State& state;
  std::vector<std::unique_ptr<torch::optim::OptimizerOptions>> options;
  State old_state;
  bool done = false;
};

}  // namespace

void SSAM::load(torch::serialize::InputArchive& archive) {
  check_may_load();
  const at::NoGradGuard no_grad;
  Backup backup(param_groups_, state_);
  serialize(*this, archive);
  for (std::size_t g = 0; g < param_groups_.size(); ++g) {
    options_of(g).inherit(static_cast<const SSAMOptions&>(*backup.options[g]));
  }
  c10::IValue seed, draw;
  const bool has_noise = archive.try_read(kSeed, seed) && archive.try_read(kDraw, draw);
  finish_load(has_noise ? std::optional(detail::as_int(seed, kSeed)) : std::nullopt,
              has_noise ? std::optional(detail::as_draw(draw)) : std::nullopt);
  backup.done = true;
}

// {"state": {place: {"momentum_buffer", "clean", "fisher", "master"}}, "param_groups": [{options, "seed", "draw",
// "params": places}]}
c10::IValue SSAM::state_dict() const {
  auto* self = const_cast<SSAM*>(this);
  self->note_clean_to_save();
  Dict state = detail::new_dict();
  c10::impl::GenericList groups(c10::AnyType::get());
  std::int64_t place = 0;
  for (std::size_t g = 0; g < param_groups_.size(); ++g) {
    Dict group = detail::new_dict();
    const SSAMOptions& options = options_of(g);
    options.write([&](const char* name, const c10::IValue& value) { group.insert(name, value); });
    group.insert(kSeed, seed());
    group.insert(kDraw, draw());
    c10::impl::GenericList places(c10::AnyType::get());
    for (const at::Tensor& p : param_groups_[g].params()) {
      places.push_back(place);
      const auto found = state_.find(p.unsafeGetTensorImpl());
      if (found != state_.end()) {
        Dict entry = detail::new_dict();
        const auto& own = static_cast<const SSAMParamState&>(*found->second);
        if (own.momentum_buffer().defined()) entry.insert("momentum_buffer", own.momentum_buffer());
        if (own.clean().defined()) entry.insert("clean", own.clean());
        if (own.fisher().defined()) entry.insert("fisher", own.fisher());
        if (own.master().defined()) entry.insert("master", own.master());
        if (!entry.empty()) state.insert(place, entry);
      }
      ++place;
    }
    group.insert("params", places);
    groups.push_back(group);
  }
  self->forget_regenerated();
  Dict result = detail::new_dict();
  result.insert("state", state);
  result.insert("param_groups", groups);
  return result;
}

void SSAM::load_state_dict(const c10::IValue& state_dict) {
  const Dict dict = detail::as_dict(state_dict, "the state_dict");
  const Dict saved_state = detail::as_dict(detail::value_of(dict, "state"), "state_dict['state']");
  const c10::IValue saved_groups = detail::value_of(dict, "param_groups");
  TORCH_CHECK_VALUE(saved_groups.isList(), "torch_ssam: state_dict['param_groups'] is not a list.");
  const auto groups = saved_groups.toList();
  TORCH_CHECK_VALUE(groups.size() == param_groups_.size(), "torch_ssam: the state_dict has ", groups.size(),
                    " parameter groups and the optimizer ", param_groups_.size(), "; expected the same.");
  check_may_load();
  const at::NoGradGuard no_grad;
  Backup backup(param_groups_, state_);
  std::optional<std::int64_t> seed, draw;
  for (std::size_t g = 0; g < param_groups_.size(); ++g) {
    const Dict group = detail::as_dict(groups.get(g), "a parameter group of the state_dict");
    options_of(g).read([&](const char* name, c10::IValue& value) {  // others, such as `foreach`, are none of ours
      const bool found = group.contains(name);
      if (found) value = group.at(name);
      return found;
    });
    options_of(g).inherit(static_cast<const SSAMOptions&>(*backup.options[g]));
    if (group.contains(kSeed)) seed = detail::as_int(group.at(kSeed), kSeed);
    if (group.contains(kDraw)) draw = detail::as_draw(group.at(kDraw));

    const c10::IValue places = detail::value_of(group, "params");
    const std::vector<at::Tensor>& params = param_groups_[g].params();
    TORCH_CHECK_VALUE(places.isList() && places.toList().size() == params.size(), "torch_ssam: group ", g,
                      " of the state_dict does not have the ", params.size(), " parameters of the optimizer's.");
    for (std::size_t i = 0; i < params.size(); ++i) {
      const c10::IValue entry = detail::value_of(saved_state, c10::IValue(places.toList().get(i)));
      if (entry.isNone()) continue;
      const Dict fields = detail::as_dict(entry, "the state of a parameter");
      const c10::IValue buffer = detail::value_of(fields, "momentum_buffer");
      const c10::IValue clean = detail::value_of(fields, "clean");
      const c10::IValue fisher = detail::value_of(fields, "fisher");
      const c10::IValue master = detail::value_of(fields, "master");
      // Copies: the caller may go on to use the tensors that it passed.
      if (buffer.isTensor()) state_of(params[i]).momentum_buffer() = buffer.toTensor().clone();
      if (clean.isTensor()) state_of(params[i]).clean() = clean.toTensor().clone();
      if (fisher.isTensor()) state_of(params[i]).fisher() = fisher.toTensor().clone();
      if (master.isTensor()) state_of(params[i]).master() = master.toTensor().clone();
    }
  }
  finish_load(seed, draw);
  backup.done = true;
}

}  // namespace torch_ssam
