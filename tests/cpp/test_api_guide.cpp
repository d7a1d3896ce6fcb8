// The code of docs/cpp.md, compiled and run; a test keeps the two the same, line by line.
#include <torch/optim/schedulers/step_lr.h>
#include <torch_ssam/torch_ssam.h>

#include <filesystem>
#include <fstream>
#include <regex>
#include <string>

#include "api_testing.h"

namespace torch_ssam {
namespace {

using namespace testing;

struct Examples : torch::data::datasets::Dataset<Examples> {
  torch::data::Example<> get(std::size_t index) override {
    return {torch::full({3}, static_cast<float>(index)), torch::full({1}, static_cast<float>(index))};
  }
  std::optional<std::size_t> size() const override { return 8; }
};

// clang-format off: the guide's lines as they stand there
TEST(GuideTest, Train) {
  torch::manual_seed(0);
  torch::nn::Sequential model(torch::nn::Linear(3, 1));
  const auto before = copies(model->parameters());
  const auto loss = [](const Tensor& output, const Tensor& target) { return torch::mse_loss(output, target); };
  auto loader = torch::data::make_data_loader(Examples().map(torch::data::transforms::Stack<>()), 4);
  torch_ssam::SSAM opt(model->parameters(), torch_ssam::SSAMOptions(0.1).noise_std(0.01).momentum(0.9));
  for (auto& batch : *loader) {
    opt.zero_grad();
    {
      auto perturbed = opt.perturb();          // the parameters hold clean + noise
      loss(model->forward(batch.data), batch.target).backward();
    }                                          // the exact clean bits are back
    opt.step();                                // updates the clean weights
  }
  EXPECT_FALSE(same_bits(copies(model->parameters()), before));
  EXPECT_EQ(opt.draw(), 2);
}

TEST(GuideTest, OtherWaysToDrive) {
  const Tensor w = parameter(torch::ones(3)), x = torch::ones({8, 3}), y = torch::zeros(8);
  const std::vector<Tensor> params{parameter(torch::ones(2))};
  const auto loss_of_part = [&](const Tensor& x_k, const Tensor& y_k) { return torch::mse_loss(x_k.matmul(w), y_k); };
  {
    const auto loss = [&] { return loss_of_part(x, y); };
    SSAM opt({w}, SSAMOptions(0.1));
    opt.step([&] { opt.zero_grad(); auto l = loss(); l.backward(); return l; });
    opt.add_param_group({params, std::make_unique<SSAMOptions>(SSAMOptions().noise_std(0))});
    torch::optim::StepLR schedule(opt, 30, 0.1);
    torch::optim::LRScheduler& any = schedule;
    any.step();
    static_cast<SSAMOptions&>(opt.param_groups()[0].options()).noise_std(0.005);
    EXPECT_EQ(static_cast<SSAMOptions&>(opt.param_groups()[1].options()).lr(), 0.1);
  }
  {
    const auto loss = [&] { return loss_of_part(x, y); };
    SSAM opt({w}, SSAMOptions(0.1).samples(4).antithetic(true));
    for ([[maybe_unused]] auto k : opt.perturbations()) loss().backward();
    opt.step();
  }
  {
    const auto& loss = loss_of_part;
    SSAM by_filter({w}, SSAMOptions(0.1).noise_std(0.003).scale("filter"));
    SSAM clipped({w}, SSAMOptions(0.1).weight_clip(2.5));
    SSAM by_channel({w}, SSAMOptions(0.1).channel_dim(1));
    SSAM with_masters({w}, SSAMOptions(0.1).master_dtype(at::kFloat));
    { auto perturbed = by_filter.perturb(); EXPECT_FALSE(torch::equal(w, w.detach().round())); }
    SSAM opt({w}, SSAMOptions(0.1).memory("regenerate").samples(4));
    for (auto [x_k, y_k] : opt.perturbations(x, y)) loss(x_k, y_k).backward();
    opt.step();
  }
  {
    SSAM opt({w}, SSAMOptions(0.1).keep_perturbed(true));
    opt.train();
    loss_of_part(x, y).backward();
    opt.step();
    opt.eval();
  }
  {
    torch::nn::Linear model(3, 1);
    SSAMAdamW adam(model->parameters(), SSAMAdamWOptions(1e-3).betas({0.9, 0.95}).noise_std(0.01));
    { auto perturbed = adam.perturb(); model->forward(torch::ones({2, 3})).sum().backward(); }
    adam.step();
    EXPECT_EQ(adam.draw(), 1);
  }
  {
    const auto loss = [&] { return params[0].square().sum(); };
    torch::optim::Adam adam(params, torch::optim::AdamOptions(0.1));
    WeightNoise noise(params, 0.01);
    { auto pass = noise.applied(); loss().backward(); } adam.step();
    EXPECT_LT(params[0].max().item<float>(), 1);
  }
}

TEST(GuideTest, SaveAndLoad) {
  const auto home = std::filesystem::current_path();
  const auto folder = std::filesystem::path(::testing::TempDir()) / "torch_ssam_guide";
  std::filesystem::create_directories(folder);
  std::filesystem::current_path(folder);
  torch::nn::Sequential model(torch::nn::Linear(3, 1));
  SSAM opt(model->parameters(), SSAMOptions(0.1));
  const auto before = copies(model->parameters());
  torch_ssam::write_pickle(torch_ssam::state_dict(*model), "model.pt");   // Python: torch.load("model.pt")
  torch_ssam::write_pickle(opt.state_dict(), "opt.pt");                   // Python: opt.load_state_dict(torch.load("opt.pt"))
  {
    const torch::NoGradGuard no_grad;
    for (auto& p : model->parameters()) p.zero_();
  }
  torch_ssam::load_state_dict(*model, torch_ssam::read_pickle("model.pt"));
  opt.load_state_dict(torch_ssam::read_pickle("opt.pt"));
  std::filesystem::current_path(home);
  std::filesystem::remove_all(folder);
  EXPECT_TRUE(same_bits(copies(model->parameters()), before));
}

TEST(GuideTest, ModuleTheoryAndSimulation) {
  const Tensor x = torch::ones({2, 100});
  const std::vector<double> target{1.0, 2.0};
  torch_ssam::DiagonalLinear layer(torch_ssam::DiagonalLinearOptions(100, 3).init_scale(0.5).noise_std(0.1));
  auto y = layer(x);                 // x * w_1 * w_2 * w_3, one fused operator, differentiable to any order
  layer->product(); layer->balance_gaps();
  EXPECT_EQ(y.sizes(), x.sizes());
  torch_ssam::theory::limit_product(target, 0.5, /*depth=*/3);            // <torch_ssam/theory.h>
  torch_ssam::SimulateOptions options;  options.target = target;  options.noise_std = {0.5};
  auto run = torch_ssam::simulate(options);
  EXPECT_FALSE(run.loss.empty());
}
// clang-format on

std::string without_blanks(const std::string& text) {
  return std::regex_replace(std::regex_replace(text, std::regex("//[^\n]*"), ""), std::regex("\\s+"), "");
}

std::string contents(const std::filesystem::path& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

TEST(GuideTest, EveryLineOfItsCodeIsCompiledHere) {
  const std::string here = without_blanks(contents(__FILE__));
  std::istringstream guide(contents(std::filesystem::path(__FILE__).parent_path() / "../../docs/cpp.md"));
  bool in_code = false;
  int lines = 0;
  const std::regex span("`([^`]*)`");
  for (std::string line; std::getline(guide, line);) {
    std::vector<std::string> code;
    if (line.starts_with("```")) {
      in_code = line == "```cpp";
    } else if (in_code) {
      code.push_back(line);
    } else if (line.starts_with("| ") && line.find("(") != std::string::npos) {
      for (std::sregex_iterator i(line.begin(), line.end(), span), end; i != end; ++i) code.push_back((*i)[1]);
    }
    for (const std::string& piece : code) {
      ++lines;
      EXPECT_NE(here.find(without_blanks(piece)), std::string::npos) << piece;
    }
  }
  EXPECT_GT(lines, 25);  // the guide was found and read
}

}  // namespace
}  // namespace torch_ssam
