// Checkpoints that earlier versions wrote, tests/data/checkpoints/<commit>/cpp.zip: they load, and training goes on in
// the bits in which it went on then. Written by write_checkpoints.cpp; Python's, and Python from these:
// tests/python/test_old_checkpoints.py.
#include <caffe2/serialize/inline_container.h>

#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>

#include "api_testing.h"
#include "checkpoint_runs.h"

namespace torch_ssam {
namespace {

using namespace testing;

// The runs of a file: they are packed together, in a zip in the zip.
class Archive {
 public:
  explicit Archive(const std::filesystem::path& path)
      : version(path.parent_path().filename()), packed_(unpacked(path)), reader_(&packed_) {}

  std::set<std::string> runs() {
    std::set<std::string> names;
    for (const std::string& record : reader_.getAllRecords()) {
      if (const auto slash = record.find('/'); slash != record.npos && record[0] != '.')
        names.insert(record.substr(0, slash));
    }
    return names;
  }

  std::string bytes(const std::string& record) { return bytes_of(reader_, record); }

  c10::IValue pickle(const std::string& record) {
    const std::string test = ::testing::UnitTest::GetInstance()->current_test_info()->name();  // they run side by side
    const auto path = std::filesystem::path(::testing::TempDir()) / ("torch_ssam_old_checkpoint_" + test + ".pt");
    std::ofstream(path, std::ios::binary) << bytes(record);
    const c10::IValue value = read_pickle(path);
    std::filesystem::remove(path);
    return value;
  }

  template <typename Value>
  void load(const std::string& record, Value& value) {
    std::istringstream file(bytes(record));
    torch::load(value, file);
  }

  std::string version;

 private:
  static std::string bytes_of(caffe2::serialize::PyTorchStreamReader& reader, const std::string& record) {
    const auto [data, size] = reader.getRecord(record);
    return {static_cast<const char*>(data.get()), size};
  }

  static std::string unpacked(const std::filesystem::path& path) {
    caffe2::serialize::PyTorchStreamReader file(path);
    return bytes_of(file, "runs.zip");
  }

  std::istringstream packed_;
  caffe2::serialize::PyTorchStreamReader reader_;
};

std::vector<std::filesystem::path> archives() {
  std::vector<std::filesystem::path> found;
  for (const auto& folder : std::filesystem::directory_iterator(TORCH_SSAM_TEST_DATA "/checkpoints")) {
    if (std::filesystem::exists(folder.path() / "cpp.zip")) found.push_back(folder.path() / "cpp.zip");
  }
  return found;
}

// Where two values differ: tensors by bits, dicts by what is expected (later versions may add names).
void differences(const c10::IValue& found, const c10::IValue& expected, const std::string& where,
                 std::vector<std::string>& out) {
  if (expected.isTensor()) {
    if (!found.isTensor() || !same_bits(found.toTensor(), expected.toTensor())) out.push_back(where);
  } else if (expected.isGenericDict()) {
    for (const auto& item : expected.toGenericDict()) {
      const std::string name =
          where + "[" + (item.key().isString() ? item.key().toStringRef() : std::to_string(item.key().toInt())) + "]";
      if (found.isGenericDict() && found.toGenericDict().contains(item.key())) {
        differences(found.toGenericDict().at(item.key()), item.value(), name, out);
      } else {
        out.push_back(name + " is missing");
      }
    }
  } else if (expected.isList()) {
    const auto a = found.toListRef(), b = expected.toListRef();
    if (a.size() != b.size()) out.push_back(where + " has another length");
    for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
      differences(a[i], b[i], where + "[" + std::to_string(i) + "]", out);
    }
  } else if (!(found == expected)) {
    out.push_back(where);
  }
}

std::string differences(const c10::IValue& found, const c10::IValue& expected) {
  std::vector<std::string> different;
  differences(found, expected, "", different);
  std::string text;
  for (const std::string& where : different) text += where + "\n";
  return text;
}

bool is_noise(Archive& archive, const std::string& name) {
  return archive.pickle(name + "/run.pt").toGenericDict().at("front").toStringRef() == "WeightNoise";
}

// Goes on from what `load` brings.
template <typename Load>
c10::IValue resumed(const TrainingRun& run, const Load& load) {
  const auto model = std::make_shared<Model>(run, 5);
  SSAM opt = make_other_optimizer(run, *model);
  load(opt, model);
  train(run, opt, *model, run.steps, run.more);
  return result_of(run, opt, *model);
}

TEST(OldCheckpointsTest, ThereAreSome) {
  std::set<std::string> versions;
  std::size_t runs = 0;
  for (const auto& path : archives()) {
    Archive archive(path);
    versions.insert(archive.version);
    runs += archive.runs().size();
  }
  EXPECT_TRUE(versions.contains("1e48826"));
  EXPECT_GE(runs, 49U);
}

TEST(OldCheckpointsTest, WhatTorchSaveWroteGoesOnInItsBits) {
  for (const auto& path : archives()) {
    Archive archive(path);
    for (const std::string& name : archive.runs()) {
      if (is_noise(archive, name)) continue;  // below
      const TrainingRun run = described(archive.pickle(name + "/run.pt").toGenericDict());
      const c10::IValue found = resumed(run, [&](SSAM& opt, const std::shared_ptr<Model>& model) {
        archive.load(name + "/archive.pt", opt);
        auto module = std::static_pointer_cast<torch::nn::Module>(model);
        archive.load(name + "/model.pt", module);
      });
      EXPECT_EQ(differences(found, archive.pickle(name + "/expected.pt")), "") << archive.version << " " << name;
    }
  }
}

TEST(OldCheckpointsTest, AStateDictGoesOnInItsBits) {
  for (const auto& path : archives()) {
    Archive archive(path);
    for (const std::string& name : archive.runs()) {
      if (is_noise(archive, name)) continue;  // below
      const TrainingRun run = described(archive.pickle(name + "/run.pt").toGenericDict());
      const Dict saved = archive.pickle(name + "/checkpoint.pt").toGenericDict();
      const c10::IValue found = resumed(run, [&](SSAM& opt, const std::shared_ptr<Model>& model) {
        load_state_dict(*model, saved.at("model"));
        opt.load_state_dict(saved.at("opt"));
      });
      EXPECT_EQ(differences(found, archive.pickle(name + "/expected.pt")), "") << archive.version << " " << name;
    }
  }
}

TEST(OldCheckpointsTest, WeightNoiseGoesOnWithItsDraws) {
  for (const auto& path : archives()) {
    Archive archive(path);
    for (const std::string& name : archive.runs()) {
      if (!is_noise(archive, name)) continue;  // above
      const Dict options = archive.pickle(name + "/run.pt").toGenericDict();
      TrainingRun run;
      run.dtype = options.at("dtype").toStringRef();
      const auto model = std::make_shared<Model>(run, 5);
      auto module = std::static_pointer_cast<torch::nn::Module>(model);
      archive.load(name + "/model.pt", module);
      WeightNoise noise(model->tensors(), WeightNoiseOptions(options.at("noise_std").toDouble())
                                              .distribution(options.at("distribution").toStringRef())
                                              .scale(options.at("scale").toStringRef())
                                              .memory(options.at("memory").toStringRef())
                                              .seed(1));
      archive.load(name + "/archive.pt", noise);
      const c10::IValue found = noisy_weights(noise, *model, options.at("more").toInt());
      EXPECT_EQ(differences(found, archive.pickle(name + "/expected.pt")), "") << archive.version << " " << name;
    }
  }
}

// That the comparison sees single bits: each tensor of a stored result, with its last bit flipped, is named.
TEST(OldCheckpointsTest, AFlippedBitIsNamed) {
  for (const auto& path : archives()) {
    Archive archive(path);
    const c10::IValue whole = archive.pickle("fisher_kept/expected.pt");
    for (const char* part : {"momentum_buffer", "fisher"}) {
      const c10::IValue other = archive.pickle("fisher_kept/expected.pt");
      const Dict state = other.toGenericDict().at("opt").toGenericDict().at("state").toGenericDict();
      const Tensor tensor = state.at(0).toGenericDict().at(part).toTensor();
      static_cast<char*>(tensor.mutable_data_ptr())[tensor.nbytes() - tensor.element_size()] ^= 1;
      EXPECT_EQ(differences(whole, other), "[opt][state][0][" + std::string(part) + "]\n");
    }
    const c10::IValue other = archive.pickle("fisher_kept/expected.pt");
    const Tensor tensor = other.toGenericDict().at("model").toGenericDict().at("conv").toTensor();
    static_cast<char*>(tensor.mutable_data_ptr())[0] ^= 1;
    EXPECT_EQ(differences(whole, other), "[model][conv]\n");
  }
}

}  // namespace
}  // namespace torch_ssam
