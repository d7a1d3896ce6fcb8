// What an optimizer with noise checks, saves and loads: options, the state of the update, clean weights while kept
// perturbed, Fisher sums, seed and draw. LibTorch's archives through the same template as torch::optim's, and the
// layout of Python's state_dict. A load that fails leaves the optimizer as it was. Tests: tests/cpp/test_api_state.cpp,
// tests/python/test_cpp_parity.py.
#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>
#include <torch/serialize/archive.h>
#include <torch_ssam/optim/checkpoints.h>

#include <typeinfo>
#include <utility>

#include "noise/options.h"
#include "noise/parameters.h"
#include "noise/scope.h"
#include "noise/seeds.h"
#include "optim/options.h"
#include "pickled.h"

namespace torch_ssam {

using detail::Dict;
using torch::optim::OptimizerParamGroup;

namespace {

const char* const kSeed = "seed";
const char* const kDraw = "draw";

}  // namespace

// --- state

NoiseParamState& NoiseOptimizer::state_of(const at::Tensor& param) {
  auto& state = state_[param.unsafeGetTensorImpl()];
  if (!state) state = new_state();
  return static_cast<NoiseParamState&>(*state);
}

const NoiseParamState* NoiseOptimizer::find_state(const at::Tensor& param) const {
  const auto found = state_.find(param.unsafeGetTensorImpl());
  return found == state_.end() ? nullptr : static_cast<const NoiseParamState*>(found->second.get());
}

NoiseParamState* NoiseOptimizer::find_state(const at::Tensor& param) {
  return const_cast<NoiseParamState*>(std::as_const(*this).find_state(param));
}

// --- groups and options

NoiseOptimizer::NoiseOptimizer(std::unique_ptr<FusedOptions> defaults)
    : Optimizer(std::vector<OptimizerParamGroup>{}, std::move(defaults)),
      drive_(
          std::make_shared<detail::Drive>(detail::resolve_seed(static_cast<const FusedOptions&>(*defaults_).seed()))) {}

void NoiseOptimizer::add_groups(const std::vector<OptimizerParamGroup>& groups) {
  check_options(static_cast<const FusedOptions&>(*defaults_));
  std::size_t count = 0;
  for (const OptimizerParamGroup& group : groups) count += group.params().size();
  TORCH_CHECK_VALUE(count > 0, "torch_ssam: ", name(),
                    " got an empty list of parameters; expected model->parameters().");
  for (const OptimizerParamGroup& group : groups) add_param_group(group);
}

FusedOptions& NoiseOptimizer::options_of(std::size_t group) {
  torch::optim::OptimizerOptions& options = param_groups_[group].options();
  TORCH_CHECK(typeid(options) == typeid(*defaults_), "torch_ssam: parameter group ", group,
              " has options of another optimizer; expected torch_ssam::", name(), "Options.");
  return static_cast<FusedOptions&>(options);
}

const FusedOptions& NoiseOptimizer::options_of(std::size_t group) const {
  return const_cast<NoiseOptimizer*>(this)->options_of(group);
}

void NoiseOptimizer::check_options(const FusedOptions& options) const {
  detail::check_noise(options);
  detail::check_passes(options);
  detail::check_masters(options);
  check_update(options);
}

void NoiseOptimizer::add_param_group(const OptimizerParamGroup& param_group) {
  const auto& defaults = static_cast<const FusedOptions&>(*defaults_);
  const torch::optim::OptimizerOptions& given = param_group.has_options() ? param_group.options() : defaults;
  TORCH_CHECK(typeid(given) == typeid(defaults),
              "torch_ssam: the options of a parameter group are of another optimizer; expected "
              "std::make_unique<torch_ssam::",
              name(), "Options>(...), or none.");
  std::unique_ptr<torch::optim::OptimizerOptions> copy = given.clone();
  auto& options = static_cast<FusedOptions&>(*copy);
  if (param_group.has_options()) {
    detail::check_group_seed(options.seed(), seed());
    options.inherit(defaults);
  }
  check_options(options);
  if (!param_groups_.empty()) detail::check_common(options, first_options());
  std::vector<at::Tensor> params = detail::check_params(param_group.params(), param_groups_);
  if (options.memory() == detail::kRegenerate) detail::check_regenerated(params);
  for (std::size_t i = 0; i < params.size(); ++i) detail::check_channel_dim(params[i], i, options.channel_dim());
  detail::check_masters(options, params);
  Optimizer::add_param_group(OptimizerParamGroup(std::move(params)));
  // After, not with it: LibTorch 2.13 replaces group options that are not of its own optimizers by the defaults.
  param_groups_.back().set_options(std::move(copy));
  if (!drive_->training) return;
  const auto is_clean = [&](const at::Tensor& p) { return !drive_->noise.is_applied(p); };
  for_each_group([&](const FusedOptions& group, const detail::Members& members) {
    if (group.noise_std() == 0) return;
    drive_->noise.apply(members.trainable().where(is_clean), detail::noise_of(group));
  });
  note_clean();
}

std::int64_t NoiseOptimizer::seed() const { return drive_->noise.generator.seed(); }
std::int64_t NoiseOptimizer::draw() const { return drive_->noise.generator.draw(); }

// State is known by a tensor's address: what is kept of one that left its group would go to the next tensor there.
const std::vector<detail::Members>& NoiseOptimizer::placed() {
  detail::NoiseState& noise = drive_->noise;
  return noise.placed(param_groups_, [&](const detail::Keys& keys) {
    std::vector<void*> left;
    for (const auto& [key, state] : state_) {
      if (keys.count(static_cast<detail::Key>(key)) == 0) left.push_back(key);
    }
    for (void* key : left) state_.erase(key);
    for (const OptimizerParamGroup& group :
         param_groups_) {  // state that a user gave to a tensor which takes another's place
      for (const at::Tensor& p : group.params()) {
        const NoiseParamState* state = find_state(p);
        if (state != nullptr && !noise.scales.known_fisher(p).defined()) noise.scales.set_fisher(p, state->fisher());
      }
    }
  });
}

void NoiseOptimizer::for_each_group(const std::function<void(const FusedOptions&, const detail::Members&)>& visit) {
  const std::vector<detail::Members>& members = placed();
  for (std::size_t g = 0; g < param_groups_.size(); ++g) visit(options_of(g), members[g]);
}

// --- clean weights in the state

void NoiseOptimizer::note_clean() { name_clean(/*regenerated_too=*/false); }

// Of every perturbed tensor, and of no other. Where there are no copies they are made only to be saved.
void NoiseOptimizer::name_clean(bool regenerated_too) {
  drive_->noted = drive_->noise.changes();
  for (const auto& group : param_groups_) {
    for (const at::Tensor& p : group.params()) {
      const bool regenerated = drive_->noise.is_regenerated(p);
      if (drive_->noise.is_applied(p) && (regenerated_too || !regenerated)) {
        state_of(p).clean() = drive_->noise.clean_of(p);
      } else if (find_state(p) != nullptr) {
        state_of(p).clean().reset();
        if (state_of(p).empty()) state_.erase(p.unsafeGetTensorImpl());
      }
      if (regenerated) drive_->noted = -1;
    }
  }
}

// Names the masters and the sums of scale "fisher" in the state.
void NoiseOptimizer::note_masters_and_sums() {
  for (const auto& group : param_groups_) {
    for (const at::Tensor& p : group.params()) {
      const at::Tensor master = drive_->noise.known_master(p), fisher = drive_->noise.scales.known_fisher(p);
      if (find_state(p) == nullptr && !master.defined() && !fisher.defined()) continue;
      state_of(p).master() = master;
      state_of(p).fisher() = fisher;
    }
  }
}

void NoiseOptimizer::note_to_save() {
  placed();
  note_masters_and_sums();
  if (!drive_->pending && drive_->noted != drive_->noise.changes()) name_clean(/*regenerated_too=*/true);
}

void NoiseOptimizer::forget_regenerated() {
  if (!drive_->pending && drive_->noted == -1) note_clean();
}

// Writes clean weights that a load brought.
void NoiseOptimizer::settle() {
  if (!drive_->pending) return;
  const at::NoGradGuard no_grad;
  drive_->pending = false;
  for (const auto& group : param_groups_) {
    for (const at::Tensor& p : group.params()) {
      const NoiseParamState* state = find_state(p);
      if (state != nullptr && state->clean().defined()) at::Tensor(p).copy_(state->clean());
    }
  }
  note_clean();
}

// --- save and load

void NoiseOptimizer::save(torch::serialize::OutputArchive& archive) const {
  auto* self = const_cast<NoiseOptimizer*>(this);
  self->note_to_save();
  write(archive);
  self->forget_regenerated();
  archive.write(kSeed, c10::IValue(seed()));
  archive.write(kDraw, c10::IValue(draw()));
}

void NoiseOptimizer::check_may_load() const {
  TORCH_CHECK(!drive_->inside_pass, "torch_ssam: load inside perturb(): leave it first.");
}

// Checks what came for a parameter, and gives it the parameter's device, layout and dtype, or the master's.
void NoiseOptimizer::fit_loaded(const at::Tensor& param, const FusedOptions& options, NoiseParamState& state) const {
  const bool mastered = drive_->noise.has_master(param, options.master_dtype().has_value());
  if (!mastered) state.master().reset();
  state.each([&](const char* name, at::Tensor& tensor) {
    if (!tensor.defined()) return;
    if (&tensor == &state.fisher()) {
      const std::int64_t rows = detail::rows_of(param, options.channel_dim());
      TORCH_CHECK_VALUE(tensor.numel() == rows, "torch_ssam: the saved state has ", tensor.numel(),
                        " Fisher sums for a parameter of shape ", param.sizes(), "; expected ", rows,
                        ", one for each filter.");
      tensor = tensor.to(param.device(), at::kFloat).reshape({-1}).contiguous();
      return;
    }
    const at::ScalarType dtype = mastered && &tensor != &state.clean() ? at::kFloat : param.scalar_type();
    TORCH_CHECK_VALUE(tensor.sizes() == param.sizes(), "torch_ssam: the saved state has '", name, "' of shape ",
                      tensor.sizes(), " where the parameter has ", param.sizes(),
                      "; expected a checkpoint of the same model.");
    tensor = tensor.to(param.device(), dtype);
    if (tensor.strides() != param.strides()) {
      tensor = at::empty_like(param, param.options().dtype(dtype)).copy_(tensor);
    }
  });
}

// Checks what came, then takes it over.
void NoiseOptimizer::finish_load(std::optional<std::int64_t> seed, std::optional<std::int64_t> draw) {
  bool pending = false;
  std::int64_t place = -1;
  for (std::size_t g = 0; g < param_groups_.size(); ++g) {
    const FusedOptions& options = options_of(g);
    check_options(options);
    detail::check_common(options, first_options());
    for (const at::Tensor& p : param_groups_[g].params()) {
      ++place;
      if (find_state(p) == nullptr) continue;
      NoiseParamState& state = state_of(p);
      if (!counts_steps()) state.step() = 0;
      check_loaded(state, place);
      state.set_has_others(false);
      fit_loaded(p, options, state);
      pending |= state.clean().defined();
      if (state.empty()) state_.erase(p.unsafeGetTensorImpl());
    }
  }
  // A model loaded before its optimizer has written to weights that were kept perturbed: go on with those.
  (void)drive_->noise.restore();
  for (const auto& group : param_groups_) {
    for (const at::Tensor& p : group.params()) {
      const NoiseParamState* state = find_state(p);
      drive_->noise.set_master(p, state == nullptr ? at::Tensor() : state->master());
      drive_->noise.scales.set_fisher(p, state == nullptr ? at::Tensor() : state->fisher());
    }
  }
  placed();
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

void NoiseOptimizer::load(torch::serialize::InputArchive& archive) {
  check_may_load();
  const at::NoGradGuard no_grad;
  Backup backup(param_groups_, state_);
  read(archive);
  for (std::size_t g = 0; g < param_groups_.size(); ++g) {
    options_of(g).inherit(static_cast<const FusedOptions&>(*backup.options[g]));
  }
  c10::IValue seed, draw;
  const bool has_noise = archive.try_read(kSeed, seed) && archive.try_read(kDraw, draw);
  finish_load(has_noise ? std::optional(detail::as_int(seed, kSeed)) : std::nullopt,
              has_noise ? std::optional(detail::as_draw(draw)) : std::nullopt);
  backup.done = true;
}

namespace {

// As torch.optim has it in Python.
at::Tensor tensor_of(std::int64_t step) {
  return at::scalar_tensor(static_cast<double>(step), step <= (1 << 24) ? at::kFloat : at::kDouble);
}

void read_state(const Dict& fields, NoiseParamState& state) {
  std::size_t known = 0;
  state.each([&](const char* name, at::Tensor& tensor) {
    const c10::IValue value = detail::value_of(fields, name);
    if (value.isTensor()) tensor = value.toTensor().clone();  // the caller may go on to use what it passed
    known += fields.contains(name) ? 1 : 0;
  });
  if (const c10::IValue step = detail::value_of(fields, "step"); !step.isNone()) state.step() = detail::as_step(step);
  known += fields.contains("step") ? 1 : 0;
  state.set_has_others(known < fields.size());
}

}  // namespace

// {"state": {place: {buffers of the rule, "clean", "fisher", "master"}}, "param_groups": [{options, "seed", "draw",
// "params": places}]}
c10::IValue NoiseOptimizer::state_dict() const {
  auto* self = const_cast<NoiseOptimizer*>(this);
  self->note_to_save();
  Dict state = detail::new_dict();
  c10::impl::GenericList groups(c10::AnyType::get());
  std::int64_t place = 0;
  for (std::size_t g = 0; g < param_groups_.size(); ++g) {
    Dict group = detail::new_dict();
    const FusedOptions& options = options_of(g);
    options.write([&](const char* name, const c10::IValue& value) { group.insert(name, value); });
    group.insert(kSeed, seed());
    group.insert(kDraw, draw());
    c10::impl::GenericList places(c10::AnyType::get());
    for (const at::Tensor& p : param_groups_[g].params()) {
      places.push_back(place);
      if (const NoiseParamState* own = find_state(p); own != nullptr && !own->empty()) {
        Dict entry = detail::new_dict();
        own->each([&](const char* name, const at::Tensor& tensor) {
          if (tensor.defined()) entry.insert(name, tensor);
        });
        if (own->step() > 0) entry.insert("step", tensor_of(own->step()));
        state.insert(place, entry);
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

void NoiseOptimizer::load_state_dict(const c10::IValue& state_dict) {
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
    check_loaded_group(group);
    options_of(g).read([&](const char* name, c10::IValue& value) {  // others, such as `foreach`, are none of ours
      const bool found = group.contains(name);
      if (found) value = group.at(name);
      return found;
    });
    options_of(g).inherit(static_cast<const FusedOptions&>(*backup.options[g]));
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
      read_state(fields, state_of(params[i]));
    }
  }
  finish_load(seed, draw);
  backup.done = true;
}

}  // namespace torch_ssam
