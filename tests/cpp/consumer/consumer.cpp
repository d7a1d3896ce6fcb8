// What a user's first program does: trains a model with SSAM, checks that the loss fell and that the clean weights are
// back, saves, resumes, uses the module and the theory. Prints one line and returns 0, or says what is wrong.
#include <torch/torch.h>
#include <torch_ssam/torch_ssam.h>

#include <cmath>
#include <cstdio>
#include <sstream>

namespace {

int fail(const char* what) {
  std::fprintf(stderr, "consumer: %s\n", what);
  return 1;
}

}  // namespace

int main() {
  torch::manual_seed(0);
  const auto x = torch::randn({64, 8}), y = x.mul(torch::linspace(0.5, 1.5, 8)).sum(1, /*keepdim=*/true);
  torch::nn::Sequential model(torch_ssam::DiagonalLinear(torch_ssam::DiagonalLinearOptions(8, 3)),
                              torch::nn::Linear(8, 1));
  torch_ssam::SSAM opt(model->parameters(), torch_ssam::SSAMOptions(0.05).noise_std(0.01).momentum(0.9));
  const auto loss_of = [&] { return torch::mse_loss(model->forward(x), y); };
  const double before = loss_of().item<double>();
  for (int step = 0; step < 100; ++step) {
    opt.zero_grad();
    {
      auto perturbed = opt.perturb();
      loss_of().backward();
    }
    opt.step();
  }
  const double after = loss_of().item<double>();
  if (!(after < 0.01 * before)) return fail("the loss did not fall");

  std::stringstream file;
  torch::save(opt, file);
  torch_ssam::SSAM resumed(model->parameters(), torch_ssam::SSAMOptions());
  torch::load(resumed, file);
  if (resumed.draw() != 100 || resumed.seed() != opt.seed()) return fail("seed and draw did not come back");

  const double limit = torch_ssam::theory::limit_product(std::vector<double>{1.0}, 0.5, 2)[0];
  if (std::abs(limit - 0.75) > 1e-12) return fail("the theory is wrong");
  try {
    opt.step();
    return fail("a step without a perturbed gradient went through");
  } catch (const c10::Error&) {
  }
  std::printf("consumer: loss %.4f -> %.6f, draw %lld\n", before, after, static_cast<long long>(resumed.draw()));
  return 0;
}
