// State in the layout of Python's state_dict, through the pickle format that both languages read. That Python reads
// and writes the same is in tests/python/test_cpp_parity.py.
#include <caffe2/serialize/inline_container.h>

#include <filesystem>
#include <limits>

#include "api_testing.h"

namespace torch_ssam {
namespace {

using namespace testing;

std::string temporary(const char* name) {
  return (std::filesystem::path(::testing::TempDir()) / (std::string("torch_ssam_") + name)).string();
}

void step(SSAM& opt, const std::vector<Tensor>& params) {
  opt.zero_grad();
  {
    const auto pass = opt.perturb();
    loss_of(params).backward();
  }
  opt.step();
}

TEST(CheckpointTest, AnOptimizerResumesFromAPickledStateDictBitForBit) {
  const auto params = parameters();
  SSAM opt(params, SSAMOptions(0.01).momentum(0.9).seed(std::int64_t{1} << 60));
  for (int k = 0; k < 3; ++k) step(opt, params);
  const std::string path = temporary("optimizer.pt");
  write_pickle(opt.state_dict(), path);
  const auto other = parameters();
  SSAM resumed(other, SSAMOptions(0.5));
  resumed.load_state_dict(read_pickle(path));
  std::filesystem::remove(path);
  {
    const torch::NoGradGuard no_grad;
    for (std::size_t i = 0; i < other.size(); ++i) other[i].copy_(params[i]);
  }
  for (int k = 0; k < 3; ++k) {
    step(opt, params);
    step(resumed, other);
  }
  EXPECT_TRUE(same_bits(params, other));
  EXPECT_EQ(resumed.draw(), 6);
}

TEST(CheckpointTest, AModuleTakesItsWeightsBack) {
  torch::manual_seed(0);
  torch::nn::Sequential model(torch::nn::Linear(3, 4), torch::nn::BatchNorm1d(4), DiagonalLinear(4));
  const c10::IValue saved = state_dict(*model);
  const std::string path = temporary("model.pt");
  write_pickle(saved, path);
  const auto before = copies(model->parameters());
  {
    const torch::NoGradGuard no_grad;
    for (auto& p : model->parameters()) p.add_(1);
  }
  load_state_dict(*model, read_pickle(path));
  std::filesystem::remove(path);
  EXPECT_TRUE(same_bits(copies(model->parameters()), before));
}

TEST(CheckpointTest, AStateDictThatDoesNotFitIsRefusedWhole) {
  torch::nn::Sequential model(torch::nn::Linear(3, 4), torch::nn::Linear(4, 4));
  const auto before = copies(model->parameters());
  torch::nn::Sequential fewer(torch::nn::Linear(3, 4)), other(torch::nn::Linear(3, 4), torch::nn::Linear(4, 5)),
      more(torch::nn::Linear(3, 4), torch::nn::Linear(4, 4), torch::nn::Linear(4, 4));
  EXPECT_MESSAGE(load_state_dict(*model, state_dict(*fewer)), "has no tensor '1.weight'");
  EXPECT_MESSAGE(load_state_dict(*model, state_dict(*other)), "'1.weight' has shape [5, 4]");
  EXPECT_MESSAGE(load_state_dict(*model, state_dict(*more)), "has 6 tensors and the module 4");
  EXPECT_MESSAGE(load_state_dict(*model, c10::IValue(3)), "the state_dict is Int; expected a dict");
  EXPECT_TRUE(same_bits(copies(model->parameters()), before));
  SSAM opt(model->parameters(), SSAMOptions(0.1).momentum(0.9));
  EXPECT_MESSAGE(opt.load_state_dict(SSAM(std::vector<Tensor>{before[0]}).state_dict()),
                 "does not have the 4 parameters");
  EXPECT_MESSAGE(opt.load_state_dict(state_dict(*model)), "state_dict['state'] is missing");
  EXPECT_EQ(opt.param_groups()[0].options().get_lr(), 0.1);
}

// pickle.dumps({"a": 2**40 + 1, "b": -2**33, "c": "\\x8a\\x01\\x02", "d": [2**31, -2**55, 2**55 - 1, 2**62, -2**63,
// 2**56 + 3], "e": 2.5, "f": (1, 300, 70000, -1)}, protocol=2) of Python.
const char kIntegers[] =
    "\x80\x02\x7d\x71\x00\x28\x58\x01\x00\x00\x00\x61\x71\x01\x8a\x06\x01\x00\x00\x00\x00\x01\x58\x01"
    "\x00\x00\x00\x62\x71\x02\x8a\x05\x00\x00\x00\x00\xfe\x58\x01\x00\x00\x00\x63\x71\x03\x58\x04\x00"
    "\x00\x00\xc2\x8a\x01\x02\x71\x04\x58\x01\x00\x00\x00\x64\x71\x05\x5d\x71\x06\x28\x8a\x05\x00\x00"
    "\x00\x80\x00\x8a\x07\x00\x00\x00\x00\x00\x00\x80\x8a\x07\xff\xff\xff\xff\xff\xff\x7f\x8a\x08\x00"
    "\x00\x00\x00\x00\x00\x00\x40\x8a\x08\x00\x00\x00\x00\x00\x00\x00\x80\x8a\x08\x03\x00\x00\x00\x00"
    "\x00\x00\x01\x65\x58\x01\x00\x00\x00\x65\x71\x07\x47\x40\x04\x00\x00\x00\x00\x00\x00\x58\x01\x00"
    "\x00\x00\x66\x71\x08\x28\x4b\x01\x4d\x2c\x01\x4a\x70\x11\x01\x00\x4a\xff\xff\xff\xff\x74\x71\x09"
    "\x75\x2e";

TEST(CheckpointTest, IntegersOfEveryLengthThatPythonWritesAreRead) {
  const std::string path = temporary("integers.pt");
  {
    caffe2::serialize::PyTorchStreamWriter archive(path);
    archive.writeRecord("data.pkl", kIntegers, sizeof kIntegers - 1);
    archive.writeEndOfFile();
  }
  const auto dict = read_pickle(path).toGenericDict();
  std::filesystem::remove(path);
  constexpr std::int64_t one = 1;
  EXPECT_EQ(dict.at("a").toInt(), (one << 40) + 1);
  EXPECT_EQ(dict.at("b").toInt(), -(one << 33));
  EXPECT_EQ(dict.at("c").toStringRef(), "\xc2\x8a\x01\x02");
  const std::vector<std::int64_t> expected{
      one << 31, -(one << 55), (one << 55) - 1, one << 62, std::numeric_limits<std::int64_t>::min(), (one << 56) + 3};
  const auto list = dict.at("d").toList();
  ASSERT_EQ(list.size(), expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i) EXPECT_EQ(list.get(i).toInt(), expected[i]) << i;
  EXPECT_EQ(dict.at("e").toDouble(), 2.5);
  const auto tuple = dict.at("f").toTupleRef().elements();
  EXPECT_EQ(tuple[2].toInt(), 70000);
  EXPECT_EQ(tuple[3].toInt(), -1);
}

TEST(CheckpointTest, AFileThatIsCutShortIsNoPickle) {
  const std::string path = temporary("short.pt");
  for (std::size_t bytes = 0; bytes < sizeof kIntegers - 1; bytes += 7) {
    caffe2::serialize::PyTorchStreamWriter archive(path);
    archive.writeRecord("data.pkl", kIntegers, bytes);
    archive.writeEndOfFile();
    EXPECT_MESSAGE(read_pickle(path), "is no pickle that LibTorch reads");
  }
  std::filesystem::remove(path);
}

TEST(CheckpointTest, ADrawBelowZeroIsRefused) {
  SSAM opt(parameters());
  auto state = opt.state_dict();
  state.toGenericDict().at("param_groups").toList().get(0).toGenericDict().insert_or_assign("draw", -1);
  EXPECT_MESSAGE(opt.load_state_dict(state), "draw is -1; expected an integer >= 0");
  EXPECT_EQ(opt.draw(), 0);
}

TEST(CheckpointTest, AFileThatIsNotThereIsNamed) {
  EXPECT_MESSAGE(read_pickle("/nowhere/at/all.pt"), "cannot read '/nowhere/at/all.pt'");
  EXPECT_MESSAGE(write_pickle(c10::IValue(1), "/nowhere/at/all.pt"), "cannot write '/nowhere/at/all.pt'");
}

}  // namespace
}  // namespace torch_ssam
