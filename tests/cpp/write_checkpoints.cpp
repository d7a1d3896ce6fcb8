// Writes the C++ checkpoints of the torch_ssam that it is built with, which every later version must load and go on
// with:
//   write_checkpoints tests/data/checkpoints/<commit>/cpp.zip
// For each run: run.pt describes it, expected.pt has the bits that it ends in; archive.pt and model.pt are what
// torch::save wrote of optimizer and model, checkpoint.pt both in the layout of Python's state_dict. Read by
// test_api_old_checkpoints.cpp and tests/python/test_old_checkpoints.py. New options get their runs here.
#include <caffe2/serialize/inline_container.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <functional>
#include <sstream>

#include "checkpoint_runs.h"

namespace {

using namespace torch_ssam;
using namespace torch_ssam::testing;

struct Case {
  std::string name;
  TrainingRun run;
  SSAMOptions options;
  std::vector<SSAMOptions> groups{};
};

SSAMOptions base() { return SSAMOptions(0.0625).noise_std(0.25).seed(7); }
SSAMOptions momentum() { return base().momentum(0.9); }

TrainingRun kept(const std::string& saved) {
  TrainingRun run;
  run.drive = "kept";
  run.saved = saved;
  return run;
}

template <typename Change>
TrainingRun changed(TrainingRun run, const Change& change) {
  change(run);
  return run;
}

TrainingRun driven(const std::string& drive) {
  return changed(TrainingRun(), [&](TrainingRun& run) { run.drive = drive; });
}
TrainingRun of(const std::string& dtype, TrainingRun run = {}) {
  run.dtype = dtype;
  return run;
}

std::vector<Case> cases() {
  const TrainingRun plain, in_train = kept("in train"), in_eval = kept("in eval");
  const TrainingRun first = changed(plain, [](TrainingRun& run) { run.steps = 0; });
  const TrainingRun inside = changed(plain, [](TrainingRun& run) { run.saved = "inside a pass"; });
  const SSAMOptions masters = SSAMOptions(0.002).noise_std(0.004).seed(7).momentum(0.9).master_dtype(torch::kFloat);
  const SSAMOptions passes = base().samples(2).antithetic(true).clean_weight(0.5);
  const SSAMOptions regenerate = momentum().memory("regenerate");
  const std::vector<SSAMOptions> groups{
      SSAMOptions().noise_std(0.2).momentum(0.9).nesterov(true).scale("filter"),
      SSAMOptions().noise_std(0.0).lr(0.03125),
      SSAMOptions().memory("regenerate").distribution("rademacher").maximize(true),
      SSAMOptions().scale("fisher").noise_std(0.1).momentum(0.5).dampening(0.25).weight_decay(0.01).radius(3.0)};
  std::vector<Case> all{
      {"plain", plain, base()},
      {"before_the_first_step", first, momentum()},
      {"momentum", plain, momentum()},
      {"dampening", plain, momentum().dampening(0.5)},
      {"nesterov_and_decay", plain, momentum().nesterov(true).weight_decay(0.02)},
      {"maximize", plain, momentum().maximize(true)},
      {"no_noise", plain, momentum().noise_std(0.0)},
      {"rademacher", plain, momentum().distribution("rademacher")},
      {"negative_seed", plain, base().seed(-(std::int64_t{1} << 62) - 3)},
      {"radius", plain, momentum().radius(2.5)},
      {"closure", driven("closure"), momentum()},
      {"passes", driven("perturbations"), passes},
      {"passes_by_closure", driven("closure"), passes},
      {"passes_of_bfloat16", of("bfloat16", driven("perturbations")), base().samples(4)},
      {"regenerate", plain, regenerate},
      {"regenerate_kept", in_train, regenerate},
      {"regenerate_kept_in_eval", in_eval, regenerate},
      {"inside_a_pass", inside, momentum()},
      {"kept", in_train, base()},
      {"kept_momentum", in_train, momentum()},
      {"kept_in_eval", in_eval, momentum()},
      {"kept_radius", in_train, momentum().radius(2.5)},
      {"groups", plain, base(), groups},
      {"groups_kept", in_train, base(), groups},
      {"groups_kept_in_eval", in_eval, base(), groups},
      {"float64", of("float64"), momentum()},
      {"float16", of("float16"), momentum()},
      {"bfloat16_kept", of("bfloat16", in_train), momentum()},
      {"masters", of("bfloat16"), masters},
      {"masters_float16", of("float16"), masters},
      {"masters_kept", of("bfloat16", in_train), masters},
      {"masters_kept_in_eval", of("bfloat16", in_eval), masters},
      {"masters_of_one_group",
       of("bfloat16", in_train),
       SSAMOptions(0.002).noise_std(0.004).seed(7),
       {SSAMOptions().momentum(0.9).master_dtype(torch::kFloat), SSAMOptions()}},
      {"fisher_options", plain, base().scale("fisher").noise_std(0.1).fisher_decay(0.5).fisher_factor(2.0)},
  };
  const std::pair<const char*, double> scales[] = {
      {"tensor", 0.03}, {"filter", 0.05}, {"element", 0.2}, {"fisher", 0.1}};
  for (const auto& [scale, noise_std] : scales) {
    all.push_back({scale, plain, momentum().scale(scale).noise_std(noise_std)});
    all.push_back({std::string(scale) + "_kept", in_train, momentum().scale(scale).noise_std(noise_std)});
  }
  for (const char* dtype : {"float32", "float64"}) {
    const TrainingRun run = changed(of(dtype), [](TrainingRun& r) {
      r.model = "layer";
      r.depth = r.dtype == "float64" ? 3 : 2;
      r.readout = r.dtype == "float64";
    });
    all.push_back({std::string("own_noise_") + dtype, run, momentum().noise_std(0.0)});
  }
  for (Case& c : all) {
    c.run.keep_perturbed = c.run.drive == "kept";
    c.options.keep_perturbed(c.run.keep_perturbed);
    c.run.groups = static_cast<std::int64_t>(c.groups.size());
    c.run.masters = {c.options.master_dtype().has_value()};
    if (!c.groups.empty()) c.run.masters.clear();
    for (const SSAMOptions& group : c.groups) c.run.masters.push_back(group.master_dtype().has_value());
  }
  return all;
}

// --- files

template <typename Value>
std::string saved(const Value& value) {
  std::stringstream file;
  torch::save(value, file);
  return file.str();
}

std::string pickled(const c10::IValue& value) {
  const auto path = std::filesystem::temp_directory_path() / "torch_ssam_write_checkpoints.pt";
  write_pickle(value, path);
  std::ifstream file(path, std::ios::binary);
  std::stringstream bytes;
  bytes << file.rdbuf();
  std::filesystem::remove(path);
  return bytes.str();
}

// All runs in a zip in a zip: packed together they take a third of the room.
class Family {
 public:
  explicit Family(const std::string& path)
      : path_(path), runs_([this](const void* bytes, std::size_t count) {
          packed_.append(static_cast<const char*>(bytes), count);
          return count;
        }) {}
  void add(const std::string& name, const std::string& bytes) { runs_.writeRecord(name, bytes.data(), bytes.size()); }
  void close() {
    runs_.writeEndOfFile();
    caffe2::serialize::PyTorchStreamWriter file(path_);
    file.writeRecord("runs.zip", packed_.data(), packed_.size(), /*compress=*/true);
    file.writeEndOfFile();
  }

 private:
  std::string path_, packed_;
  caffe2::serialize::PyTorchStreamWriter runs_;
};

void write_run(Family& out, const Case& c) {
  const auto model = std::make_shared<Model>(c.run, 0);
  SSAM opt = make_optimizer(*model, c.options, c.groups);
  train(c.run, opt, *model, 0, c.run.steps);
  if (c.run.saved == "in eval") opt.eval();
  {
    std::optional<Perturbation> pass;
    if (c.run.saved == "inside a pass") pass = opt.perturb();
    out.add(c.name + "/archive.pt", saved(opt));
    out.add(c.name + "/model.pt", saved(std::static_pointer_cast<torch::nn::Module>(model)));
    Dict both = new_dict();
    both.insert("model", state_dict(*model));
    both.insert("opt", opt.state_dict());
    out.add(c.name + "/checkpoint.pt", pickled(both));
  }
  out.add(c.name + "/run.pt", pickled(describe(c.run)));
  if (c.run.saved == "inside a pass") {  // whoever resumes there gets that draw again
    opt.load_state_dict([&] {
      const c10::IValue now = opt.state_dict();
      for (const c10::IValue& group : now.toGenericDict().at("param_groups").toListRef()) {
        group.toGenericDict().insert_or_assign("draw", opt.draw() - 1);
      }
      return now;
    }());
  }
  train(c.run, opt, *model, c.run.steps, c.run.more);
  out.add(c.name + "/expected.pt", pickled(result_of(c.run, opt, *model)));
}

void write_noise(Family& out, const std::string& name, const std::string& dtype, const WeightNoiseOptions& options) {
  const TrainingRun run = changed(of(dtype), [](TrainingRun& r) { r.more = 2; });
  const auto model = std::make_shared<Model>(run, 0);
  WeightNoise noise(model->tensors(), WeightNoiseOptions(options).seed(7));
  (void)noisy_weights(noise, *model, run.steps);
  out.add(name + "/archive.pt", saved(noise));
  out.add(name + "/model.pt", saved(std::static_pointer_cast<torch::nn::Module>(model)));
  Dict description = new_dict();
  for (const auto& [key, value] : {std::pair("dtype", dtype), std::pair("distribution", options.distribution()),
                                   std::pair("scale", options.scale()), std::pair("memory", options.memory())}) {
    description.insert(key, value);
  }
  description.insert("noise_std", options.noise_std());
  description.insert("more", run.more);
  description.insert("front", "WeightNoise");
  out.add(name + "/run.pt", pickled(description));
  out.add(name + "/expected.pt", pickled(noisy_weights(noise, *model, run.more)));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: write_checkpoints <file>\n");
    return 2;
  }
  Family out(argv[1]);
  for (const Case& c : cases()) write_run(out, c);
  write_noise(out, "noise", "float32", WeightNoiseOptions(0.25));
  write_noise(out, "noise_rademacher", "float32", WeightNoiseOptions(0.25).distribution("rademacher"));
  write_noise(out, "noise_regenerate", "float32", WeightNoiseOptions(0.25).memory("regenerate"));
  write_noise(out, "noise_filter", "bfloat16", WeightNoiseOptions(0.05).scale("filter"));
  write_noise(out, "noise_element", "float64", WeightNoiseOptions(0.2).scale("element"));
  out.close();
  return 0;
}
