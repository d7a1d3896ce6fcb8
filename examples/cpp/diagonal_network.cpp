// Theory beside measurement on diagonal linear networks: trains torch_ssam::DiagonalLinear with torch_ssam::SSAM and
// prints, for each target, the product where S-SAM ends beside torch_ssam::theory::limit_product (shrinkage and
// thresholding), and how fast the layers balance beside theory::balancing_rate. arXiv 2503.11891, Theorem 3.1.
//   diagonal_network --depth 3 --noise-std 0.5 --steps 20000
#include <torch/torch.h>
#include <torch_ssam/torch_ssam.h>

#include <cmath>
#include <cstdio>
#include <map>
#include <string>
#include <vector>

namespace {

using torch::Tensor;
namespace theory = torch_ssam::theory;

struct Settings {
  double depth = 2, noise_std = 0.5, lr = 0.02, steps = 20000, replicates = 64;
};

Settings parse(int argc, char** argv) {
  Settings s;
  const std::map<std::string, double*> options{{"--depth", &s.depth},
                                               {"--noise-std", &s.noise_std},
                                               {"--lr", &s.lr},
                                               {"--steps", &s.steps},
                                               {"--replicates", &s.replicates}};
  for (int i = 1; i < argc; i += 2) {
    const auto option = options.find(argv[i]);
    char* end = nullptr;
    if (option != options.end() && i + 1 < argc) *option->second = std::strtod(argv[i + 1], &end);
    if (end == nullptr || *end != '\0' || !(*option->second > 0)) {
      throw std::runtime_error(std::string(argv[i]) +
                               ": expected --depth, --noise-std, --lr, --steps or --replicates and a number > 0");
    }
  }
  return s;
}

// Weights (depth, features) of independent replicates after `steps`, at a step size that falls from lr to lr / 20, so
// that the noise of the steps averages out.
Tensor train(const Settings& s, const Tensor& target, const std::vector<double>& start, std::int64_t steps,
             bool decay) {
  const auto depth = static_cast<std::int64_t>(s.depth);
  torch_ssam::DiagonalLinear network(torch_ssam::DiagonalLinearOptions(target.size(0), depth).init_scale(start));
  network->to(torch::kDouble);
  torch_ssam::SSAM opt(network->parameters(),
                       torch_ssam::SSAMOptions(s.lr).noise_std(s.noise_std).keep_perturbed(true).seed(1));
  const Tensor ones = torch::ones({1, target.size(0)}, torch::kDouble);
  opt.train();
  for (std::int64_t k = 0; k < steps; ++k) {
    if (decay) {
      const double t = static_cast<double>(k) / static_cast<double>(steps);
      opt.param_groups()[0].options().set_lr(s.lr / (1 + 19 * t));
    }
    opt.zero_grad();
    (target - network(ones)).square().sum().backward();
    opt.step();
  }
  opt.eval();
  return network->weight.detach();
}

void shrinkage(const Settings& s) {
  const auto depth = static_cast<std::int64_t>(s.depth);
  const auto replicates = static_cast<std::int64_t>(s.replicates);
  const double threshold = theory::existence_threshold(s.noise_std, depth);
  std::vector<double> targets;
  for (const double factor : {0.5, 0.9, 1.5, 2.0, 3.0, 5.0, 8.0}) targets.push_back(factor * threshold);
  const std::vector<double> limit = theory::limit_product(targets, s.noise_std, depth);
  const std::vector<double> lambda = theory::shrinkage_factor(targets, s.noise_std, depth);

  const Tensor all = torch::tensor(targets, torch::kDouble).repeat_interleave(replicates);
  const double start = std::pow(2 * targets.back(), 1 / s.depth);  // from outside, with the right signs
  const Tensor product = train(s, all, {start}, static_cast<std::int64_t>(s.steps), /*decay=*/true).prod(0);
  const Tensor per_target = product.reshape({static_cast<std::int64_t>(targets.size()), replicates});
  const Tensor mean = per_target.mean(1), error = per_target.std(1) / std::sqrt(s.replicates);
  std::printf("Shrinkage: depth %lld, noise_std %g, %lld replicates, %g steps. Threshold %.4f\n",
              static_cast<long long>(depth), s.noise_std, static_cast<long long>(replicates), s.steps, threshold);
  std::printf("%10s %10s %12s %22s\n", "target", "lambda", "theory |p|", "measured |p|");
  for (std::size_t i = 0; i < targets.size(); ++i) {
    const auto h = static_cast<std::int64_t>(i);
    std::printf("%10.4f %10.4f %12.4f %14.4f +- %.4f\n", targets[i], lambda[i], limit[i], mean[h].item<double>(),
                error[h].item<double>());
  }
}

void balancing(const Settings& s) {
  const auto depth = static_cast<std::int64_t>(s.depth);
  std::vector<double> start(static_cast<std::size_t>(depth), 1.0);
  start[0] = 2.0;
  start[1] = 0.5;  // the product is right, the balance is not
  const theory::Weights weights(start, depth);
  const double gap = start[0] * start[0] - start[1] * start[1];
  const double rate = theory::balancing_rate(weights, s.noise_std)[1];  // layers 0 and 1
  const double bound = theory::balancing_rate_bound(s.noise_std, depth);
  Settings slow = s;
  slow.lr = 0.1 * s.lr;
  const std::int64_t steps = 20;
  const auto many = static_cast<std::int64_t>(400 * s.replicates);
  const Tensor after = train(slow, torch::ones({many}, torch::kDouble), start, steps, /*decay=*/false);
  const double time = slow.lr * static_cast<double>(steps);
  const double left = (after[0].square() - after[1].square()).mean().item<double>();
  std::printf("\nBalancing: gap %.3f between the first two layers, time %g, %lld replicates\n", gap, time,
              static_cast<long long>(many));
  std::printf("%28s %10.4f\n%28s %10.4f\n%28s %10.4f\n", "rate by theory at the start", rate, "measured",
              std::log(gap / left) / time, "lower bound at all times", bound);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const Settings s = parse(argc, argv);
    shrinkage(s);
    balancing(s);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "diagonal_network: %s\n", error.what());
    return 1;
  }
  return 0;
}
