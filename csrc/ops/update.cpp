// Operators that update clean weights from gradients.
//   update_             weights <- update(weights, grads, buffers)
//   update_and_perturb_ clean <- update(clean, grads, buffers); params <- clean + noise, one pass over memory.
//                       With noise_std 0 no noise is made: params <- clean, rounded to their dtype
//   update_rows_and_perturb_  clean <- update(clean, grads, buffers), clipped by rows as clip_rows_ does; row_scales <-
//   as
//                       row_scales_ makes them, without a Fisher sum; params <- clean + noise: one pass over memory for
//                       rows that fit a cache, two for longer ones, and the bits of the four operators
//   add_squares_        total <- total + the sum of squares of the weights
//   project_            scales the stacked weights onto the Euclidean ball of a radius ([CLS] Theorem 4.4). With
//                       `squared_norm`, which add_squares_ makes from 0, they are a part of what is stacked
// The update is that of a rule of csrc/math/rules.h, which `rule` names; `numbers` are its numbers in the order that it
// lists them. `buffers` are what it keeps: the first buffer of every tensor, then the second of every tensor, and so
// on. `steps` counts each tensor's updates with this one, from 1; a rule says what it takes from it. `lr_tensor`, a
// number in the memory of the device, stands in for the rule's lr. Tests: test_ops_update.py, test_ops_errors.py.
#include <cmath>

#include "direct.h"
#include "operators.h"

namespace torch_ssam {
namespace {

// The first buffer of every tensor, then the second of every tensor, and so on.
template <typename Rule, typename AnyTensor>
std::vector<TensorViews> view_buffers(const Rule& rule, const std::vector<AnyTensor>& buffers,
                                      const TensorViews& weights) {
  const auto kept = static_cast<size_t>(Rule::buffers_of(Rule::kind_of(rule)));
  TORCH_SSAM_CHECK(buffers.size() == kept * weights.size(), "buffers has ", buffers.size(), " tensors for ",
                   weights.size(), " weights; the rule '", Rule::kName, "' with these numbers keeps ", kept,
                   " for each.");
  std::vector<TensorViews> views(kept);
  for (size_t b = 0; b < kept; ++b) {
    views[b].reserve(weights.size());
    for (size_t t = 0; t < weights.size(); ++t) {
      views[b].push_back(view_parameter(buffers[b * weights.size() + t], Rule::kBuffers[b], t, Use::writes));
    }
    check_matches(views[b], Rule::kBuffers[b], weights, "weights");
  }
  return views;
}

const Tensor* first_of(const std::vector<Tensor>& tensors) { return tensors.empty() ? nullptr : &tensors[0]; }
const Tensor* first_of(const std::vector<PlainTensor>&) { return nullptr; }  // the CPU's backend does not ask where

// `params` is null for update_. The same of the dispatcher's tensors and of direct calls.
template <typename AnyTensor>
UpdateCall check_lists(const std::vector<AnyTensor>& weights, const std::vector<AnyTensor>& grads,
                       const std::vector<AnyTensor>& buffers, const std::vector<AnyTensor>* params,
                       const UpdateRule& rule, const std::optional<Tensor>& lr_tensor, const OptionalInts& steps) {
  UpdateCall call{view_parameters(weights, "weights", Use::writes),
                  view_parameters(grads, "grads", Use::reads),
                  {},
                  rule,
                  steps.value_or(std::vector<int64_t>()),
                  lr_tensor,
                  params != nullptr ? view_parameters(*params, "params", Use::writes) : TensorViews{},
                  {},
                  first_of(weights)};
  check_matches(call.grads, "grads", call.weights, "weights", /*any_dtype=*/true);
  if (params != nullptr) {
    check_matches(call.params, "params", call.weights, "weights", /*any_dtype=*/true);
    check_matches(call.grads, "grads", call.params, "params");
  }
  call.buffers = std::visit([&](const auto& r) { return view_buffers(r, buffers, call.weights); }, rule);
  TORCH_SSAM_CHECK(!steps || steps->size() == weights.size(), "steps has ", call.steps.size(), " entries for ",
                   weights.size(), " tensors; expected one each.");
  const bool counted = std::visit([](const auto& r) { return std::decay_t<decltype(r)>::kCountsSteps; }, rule);
  TORCH_SSAM_CHECK(!counted || steps || weights.empty(),
                   "steps is None; the rule expects which update each tensor is "
                   "at, from 1.");
  for (const int64_t step : call.steps) {
    TORCH_SSAM_CHECK(step >= 1, "a tensor's step is ", step, "; expected 1 at its first update, and so on.");
  }
  if (!weights.empty()) {
    check_one_device(weights, "weights", weights[0], "weights[0]");
    check_one_device(grads, "grads", weights[0], "weights[0]");
    check_one_device(buffers, "buffers", weights[0], "weights[0]");
    if (params != nullptr) check_one_device(*params, "params", weights[0], "weights[0]");
  }
  check_number(lr_tensor, "lr", first_of(weights), "weights[0]");
  if (params != nullptr) {
    check_pairs(call.weights, call.params, "parameters");
  } else {
    check_pairs(call.weights, call.grads, "gradients");
  }
  return call;
}

struct UpdateArguments {
  TORCH_SSAM_UPDATE_ARGUMENTS(TORCH_SSAM_HELD)
  TORCH_SSAM_UPDATE_OPTIONS(TORCH_SSAM_HELD)
};

UpdateCall check_update(const std::vector<Tensor>& weights, const UpdateArguments& update,
                        const std::vector<Tensor>* params) {
  const UpdateRule rule = check_rule(update.rule, *update.numbers);
  return check_lists<Tensor>(weights, *update.grads, *update.buffers, params, rule, *update.lr_tensor, *update.steps);
}

#define TORCH_SSAM_UPDATE(X) TORCH_SSAM_UPDATE_ARGUMENTS(X) TORCH_SSAM_UPDATE_OPTIONS(X)

void update_(const TensorList& weights TORCH_SSAM_UPDATE(TORCH_SSAM_PARAMETER)) {
  const UpdateArguments update{TORCH_SSAM_UPDATE(TORCH_SSAM_HOLD)};
  const UpdateCall call = check_update(weights, update, nullptr);
  if (!weights.empty()) backend_of(weights[0]).update(call);
}

#define TORCH_SSAM_NEXT_NOISE(X) TORCH_SSAM_NOISE_ARGUMENTS(X, TORCH_SSAM_NOT_TAKEN, X)

void update_and_perturb_(const TensorList& params,
                         const TensorList& clean TORCH_SSAM_UPDATE_ARGUMENTS(TORCH_SSAM_PARAMETER),
                         const Tensor& generator,
                         const std::vector<int64_t>& places TORCH_SSAM_NEXT_NOISE(TORCH_SSAM_PARAMETER)
                             TORCH_SSAM_UPDATE_OPTIONS(TORCH_SSAM_PARAMETER)) {
  const UpdateArguments update{TORCH_SSAM_UPDATE(TORCH_SSAM_HOLD)};
  const NoiseArguments noise{TORCH_SSAM_NEXT_NOISE(TORCH_SSAM_HOLD)};
  TORCH_SSAM_CHECK(noise.scale != "rows",
                   "scale is 'rows'; update_and_perturb_ takes 'isotropic' or 'element'. Call update_, row_scales_ and "
                   "perturb_from_clean_: the norms are those of the updated weights.");
  const SharedNoise shared = check_shared_noise(noise);
  UpdateCall call = check_update(clean, update, &params);
  call.noise.emplace(check_noise(shared, noise, generator, places, call.params));
  check_one_device(params, "params", generator, "generator");
  if (!params.empty()) backend_of(generator).update(call);
}

void update_and_perturb_direct(const DirectUpdate& given) {
  const Backend& backend = cpu_backend();
  TORCH_SSAM_CHECK(backend.takes_memory, "a direct call needs the CPU's own backend; expected no other in its place.");
  static const std::optional<Tensor> no_lr_tensor;
  const SharedNoise shared = check_shared_noise({.noise_std = given.noise_std,
                                                 .distribution = given.distribution,
                                                 .draw_offset = given.draw_offset,
                                                 .scale = given.scale});
  TORCH_SSAM_CHECK(shared.scale != math::Scale::rows, "scale is 'rows' in a direct call.");
  UpdateCall call = check_lists(given.clean, given.grads, given.buffers, &given.params,
                                check_rule(given.rule, given.numbers), no_lr_tensor, given.steps);
  check_places(given.places, call.params.size());
  call.noise.emplace(Noise{shared, given.generator, given.places});
  if (!given.params.empty()) backend.update(call);
}

// One operator after another, where a backend does not join them.
void update_rows_apart(const UpdateRowsCall& call, const Backend& backend) {
  const UpdateCall& whole = call.update;
  const Noise& noise = *whole.noise;
  UpdateCall update = whole;
  update.params.clear();
  update.noise.reset();
  backend.update(update);
  if (call.weight_clip != 0.0) {
    TensorViews clipped;
    for (const TensorView& view : whole.weights) {
      if (view.dim >= 2) clipped.push_back(view);
    }
    RowViews rows = rows_of(clipped);
    if (!clipped.empty()) {
      backend.clip_rows({std::move(clipped), std::move(rows), call.weight_clip, *whole.on_device});
    }
  }
  if (!noise.row_scales.empty()) {
    backend.row_scales({whole.weights, noise.row_scales, {}, 0.0, call.kind, *whole.on_device});
  }
  backend.perturb({whole.params, whole.weights, noise, /*save=*/false, *whole.on_device});
}

#define TORCH_SSAM_WHOLE_NOISE(X) TORCH_SSAM_NOISE_ARGUMENTS(X, TORCH_SSAM_NOT_TAKEN, TORCH_SSAM_NOT_TAKEN)

void update_rows_and_perturb_(const TensorList& params,
                              const TensorList& clean TORCH_SSAM_UPDATE_ARGUMENTS(TORCH_SSAM_PARAMETER),
                              const Tensor& generator, const std::vector<int64_t>& places, double weight_clip,
                              const TensorList& row_scales TORCH_SSAM_WHOLE_NOISE(TORCH_SSAM_PARAMETER),
                              StringArgument kind_name TORCH_SSAM_UPDATE_OPTIONS(TORCH_SSAM_PARAMETER)) {
  const UpdateArguments update{TORCH_SSAM_UPDATE(TORCH_SSAM_HOLD)};
  NoiseArguments noise{TORCH_SSAM_WHOLE_NOISE(TORCH_SSAM_HOLD)};
  const std::string given_kind = take(kind_name);
  const SharedNoise shared = check_shared_noise(noise);
  if (weight_clip != 0.0) check_weight_clip(weight_clip);
  const math::RowScale kind = check_row_scale(given_kind);
  UpdateCall updated = check_update(clean, update, &params);
  const bool by_rows = shared.scale == math::Scale::rows;
  const OptionalTensors rows = by_rows || !row_scales.empty() ? OptionalTensors(row_scales) : OptionalTensors();
  noise.row_scales = &rows;
  updated.noise.emplace(check_noise(shared, noise, generator, places, updated.params));
  check_one_device(params, "params", generator, "generator");
  if (params.empty()) return;
  const Backend& backend = backend_of(generator);
  const UpdateRowsCall call{std::move(updated), kind, weight_clip};
  if (backend.update_rows == nullptr || !backend.update_rows(call)) update_rows_apart(call, backend);
}

// A float64 number in the memory of the weights' device.
double* view_total(const Tensor& total, const char* name, const TensorList& weights) {
  check_strided(total, name);
  TORCH_SSAM_CHECK(total.numel() == 1 && total.scalar_type() == ScalarType::Double, name, " has ", total.numel(),
                   " elements and dtype ", dtype_name(total.scalar_type()), "; expected one float64 number.");
  if (!weights.empty()) check_one_device({total}, name, weights[0], "weights[0]");
  return static_cast<double*>(total.data_ptr());
}

void add_squares_(const Tensor& total, const TensorList& weights) {
  TensorViews views = view_parameters(weights, "weights", Use::reads);
  double* sum = view_total(total, "total", weights);
  if (weights.empty()) return;
  check_one_device(weights, "weights", weights[0], "weights[0]");
  backend_of(weights[0]).add_squares({sum, std::move(views), weights[0]});
}

void project_(const TensorList& weights, double radius, const std::optional<Tensor>& squared_norm) {
  TORCH_SSAM_CHECK(std::isfinite(radius) && radius > 0, "radius is ", radius, "; expected a finite number > 0.");
  TensorViews views = view_parameters(weights, "weights", Use::writes);
  const double* norm = squared_norm ? view_total(*squared_norm, "squared_norm", weights) : nullptr;
  if (weights.empty()) return;
  check_one_device(weights, "weights", weights[0], "weights[0]");
  backend_of(weights[0]).project({std::move(views), radius, norm, weights[0]});
}

}  // namespace

extern "C" bool torch_ssam_update_and_perturb(const DirectUpdate& given) noexcept {
  try {
    update_and_perturb_direct(given);
    return true;
  } catch (const std::exception&) {
    return false;
  }
}

TORCH_SSAM_OPERATOR(update_, "(Tensor(a!)[] weights" TORCH_SSAM_UPDATE(TORCH_SSAM_SCHEMA) ") -> ()");
TORCH_SSAM_OPERATOR(update_and_perturb_,
                    "(Tensor(a!)[] params, Tensor(b!)[] clean" TORCH_SSAM_UPDATE_ARGUMENTS(
                        TORCH_SSAM_SCHEMA) ", Tensor generator, int[] places" TORCH_SSAM_NEXT_NOISE(TORCH_SSAM_SCHEMA)
                        TORCH_SSAM_UPDATE_OPTIONS(TORCH_SSAM_SCHEMA) ") -> ()");
TORCH_SSAM_OPERATOR(
    update_rows_and_perturb_,
    "(Tensor(a!)[] params, Tensor(b!)[] clean" TORCH_SSAM_UPDATE_ARGUMENTS(
        TORCH_SSAM_SCHEMA) ", Tensor generator, int[] places, float weight_clip, Tensor(d!)[] row_scales"
        TORCH_SSAM_WHOLE_NOISE(TORCH_SSAM_SCHEMA) ", str kind='norm'" TORCH_SSAM_UPDATE_OPTIONS(TORCH_SSAM_SCHEMA)
        ") -> ()");
TORCH_SSAM_OPERATOR(add_squares_, "(Tensor(a!) total, Tensor[] weights) -> ()");
TORCH_SSAM_OPERATOR(project_, "(Tensor(a!)[] weights, float radius, Tensor? squared_norm=None) -> ()");

}  // namespace torch_ssam
