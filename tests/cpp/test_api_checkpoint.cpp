// State in the layout of Python's state_dict, through the pickle format that both languages read. That Python reads
// and writes the same is in tests/python/test_cpp_parity.py.
#include <filesystem>

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

TEST(CheckpointTest, AFileThatIsNotThereIsNamed) {
  EXPECT_MESSAGE(read_pickle("/nowhere/at/all.pt"), "cannot read '/nowhere/at/all.pt'");
  EXPECT_MESSAGE(write_pickle(c10::IValue(1), "/nowhere/at/all.pt"), "cannot write '/nowhere/at/all.pt'");
}

}  // namespace
}  // namespace torch_ssam
