// Trains a small convolutional network on Fashion-MNIST with SGD and with S-SAM and prints them side by side: accuracy,
// loss, time, and how much the loss rises under noise on the weights (the average sharpness, which S-SAM lowers).
//   train_fashion_mnist --data FOLDER --epochs 5 --noise-std 0.02
//   train_fashion_mnist --epochs 1 --save run.pt;  train_fashion_mnist --epochs 5 --resume run.pt
// A resumed run ends in the bits of one that was not stopped. --synthetic needs no files; `ctest` runs that.
#include <torch/torch.h>
#include <torch_ssam/torch_ssam.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <iostream>
#include <map>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "idx.h"

namespace {

using torch::Tensor;

struct Settings {
  std::string data =
      std::getenv("FASHION_MNIST") != nullptr ? std::getenv("FASHION_MNIST") : "/usr/share/datasets/fashion-mnist";
  std::string save, resume;
  std::string optimizer = "both";
  std::int64_t epochs = 5, batch = 128, train_examples = 60000, test_examples = 10000, seed = 0, threads = 0;
  double lr = 0.05, momentum = 0.9, noise_std = 0.01;
  bool synthetic = false;
};

const char* const kUsage =
    "usage: train_fashion_mnist [options]\n"
    "  --data FOLDER      idx files, plain or .gz (default: $FASHION_MNIST, or Debian's dataset-fashion-mnist)\n"
    "  --synthetic        images made up here instead, ten noisy patterns\n"
    "  --optimizer NAME   sgd, ssam or both (both)\n"
    "  --epochs N (5)  --batch N (128)  --train N (60000)  --test N (10000)  --seed N (0)  --threads N (all)\n"
    "  --lr X (0.05)  --momentum X (0.9)  --noise-std X (0.01)\n"
    "  --save FILE        after each epoch writes FILE.sgd and FILE.ssam\n"
    "  --resume FILE      goes on from them, up to --epochs in all\n";

Settings parse(int argc, char** argv) {
  Settings s;
  const std::map<std::string, std::function<void(const std::string&)>> options{
      {"--data", [&](const std::string& v) { s.data = v; }},
      {"--optimizer", [&](const std::string& v) { s.optimizer = v; }},
      {"--save", [&](const std::string& v) { s.save = v; }},
      {"--resume", [&](const std::string& v) { s.resume = v; }},
      {"--epochs", [&](const std::string& v) { s.epochs = std::stoll(v); }},
      {"--batch", [&](const std::string& v) { s.batch = std::stoll(v); }},
      {"--train", [&](const std::string& v) { s.train_examples = std::stoll(v); }},
      {"--test", [&](const std::string& v) { s.test_examples = std::stoll(v); }},
      {"--seed", [&](const std::string& v) { s.seed = std::stoll(v); }},
      {"--threads", [&](const std::string& v) { s.threads = std::stoll(v); }},
      {"--lr", [&](const std::string& v) { s.lr = std::stod(v); }},
      {"--momentum", [&](const std::string& v) { s.momentum = std::stod(v); }},
      {"--noise-std", [&](const std::string& v) { s.noise_std = std::stod(v); }}};
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    if (name == "--synthetic") {
      s.synthetic = true;
    } else if (const auto option = options.find(name); option != options.end() && i + 1 < argc) {
      try {
        option->second(argv[++i]);
      } catch (const std::logic_error&) {
        throw std::runtime_error(name + " got '" + argv[i] + "', which is no number");
      }
    } else {
      throw std::runtime_error("'" + name + "' is not an option, or its value is missing\n" + kUsage);
    }
  }
  if (s.optimizer != "sgd" && s.optimizer != "ssam" && s.optimizer != "both") {
    throw std::runtime_error("--optimizer is '" + s.optimizer + "'; expected sgd, ssam or both");
  }
  if (s.epochs < 1 || s.batch < 1 || s.train_examples < 1 || s.test_examples < 1) {
    throw std::runtime_error("--epochs, --batch, --train and --test are counts of at least 1");
  }
  return s;
}

struct Split {
  Tensor images, labels;  // (n, 1, 28, 28) float in about [-1, 1], (n,) int64
  std::int64_t size() const { return labels.size(0); }
};

Split load_split(const Settings& s, const std::string& name, std::int64_t most) {
  if (s.synthetic) {
    torch::manual_seed(1000);
    const Tensor patterns = torch::randn({10, 1, 28, 28});
    torch::manual_seed(name == "train" ? 1001 : 1002);
    const Tensor labels = torch::randint(10, {std::min<std::int64_t>(most, 2000)}, torch::kLong);
    return {(patterns.index_select(0, labels) + torch::randn({labels.size(0), 1, 28, 28})) / 2, labels};
  }
  const std::string images = example::find_idx(s.data, name + "-images-idx3-ubyte");
  const std::string labels = example::find_idx(s.data, name + "-labels-idx1-ubyte");
  if (images.empty() || labels.empty()) {
    throw std::runtime_error("no " + name + " images and labels in '" + s.data +
                             "'. Name the folder of the idx files with --data, install Debian's package "
                             "dataset-fashion-mnist, or try --synthetic.");
  }
  const Tensor x = example::read_idx(images).unsqueeze(1).slice(0, 0, most);
  return {x.to(torch::kFloat).div(127.5).sub(1), example::read_idx(labels).slice(0, 0, most).to(torch::kLong)};
}

torch::nn::Sequential make_model() {
  using namespace torch::nn;
  return Sequential(Conv2d(Conv2dOptions(1, 16, 3).padding(1)), ReLU(), MaxPool2d(2),
                    Conv2d(Conv2dOptions(16, 32, 3).padding(1)), ReLU(), MaxPool2d(2), Flatten(),
                    Linear(32 * 7 * 7, 10));
}

struct Score {
  double loss = 0, accuracy = 0;
};

Score evaluate(torch::nn::Sequential& model, const Split& data) {
  const torch::NoGradGuard no_grad;
  Score score;
  for (std::int64_t i = 0; i < data.size(); i += 1000) {
    const Tensor labels = data.labels.slice(0, i, i + 1000);
    const Tensor logits = model->forward(data.images.slice(0, i, i + 1000));
    score.loss += torch::nn::functional::cross_entropy(
                      logits, labels, torch::nn::functional::CrossEntropyFuncOptions().reduction(torch::kSum))
                      .item<double>();
    score.accuracy += static_cast<double>((logits.argmax(1) == labels).sum().item<std::int64_t>());
  }
  const auto n = static_cast<double>(data.size());
  return {score.loss / n, score.accuracy / n};
}

// E loss(w + noise) - loss(w) over a few draws, the same for both optimizers.
double sharpness(torch::nn::Sequential& model, const Split& data, double noise_std) {
  torch_ssam::WeightNoise noise(model->parameters(), torch_ssam::WeightNoiseOptions(noise_std).seed(1));
  double noisy = 0;
  const int draws = 5;
  for (int k = 0; k < draws; ++k) {
    const auto applied = noise.applied();
    noisy += evaluate(model, data).loss / draws;
  }
  return noisy - evaluate(model, data).loss;
}

void save_run(const std::string& path, torch::nn::Sequential& model, const torch::optim::Optimizer& opt,
              std::int64_t epochs) {
  torch::serialize::OutputArchive archive, model_archive, opt_archive;
  model->save(model_archive);
  opt.save(opt_archive);
  archive.write("model", model_archive);
  archive.write("optimizer", opt_archive);
  archive.write("epochs", c10::IValue(epochs));
  archive.save_to(path);
}

std::int64_t load_run(const std::string& path, torch::nn::Sequential& model, torch::optim::Optimizer& opt) {
  torch::serialize::InputArchive archive, model_archive, opt_archive;
  archive.load_from(path);
  archive.read("model", model_archive);
  archive.read("optimizer", opt_archive);
  model->load(model_archive);
  opt.load(opt_archive);
  c10::IValue epochs;
  archive.read("epochs", epochs);
  return epochs.toInt();
}

struct Result {
  Score train, test;
  double seconds = 0, sharpness = 0;
};

Result train(const Settings& s, bool with_noise, const Split& train_data, const Split& test_data) {
  torch::manual_seed(s.seed);
  torch::nn::Sequential model = make_model();
  std::unique_ptr<torch::optim::Optimizer> opt;
  torch_ssam::SSAM* ssam = nullptr;
  if (with_noise) {
    auto made = std::make_unique<torch_ssam::SSAM>(
        model->parameters(), torch_ssam::SSAMOptions(s.lr).noise_std(s.noise_std).momentum(s.momentum));
    ssam = made.get();
    opt = std::move(made);
  } else {
    opt = std::make_unique<torch::optim::SGD>(model->parameters(), torch::optim::SGDOptions(s.lr).momentum(s.momentum));
  }
  const char* const name = with_noise ? "ssam" : "sgd";
  std::int64_t epoch = s.resume.empty() ? 0 : load_run(s.resume + "." + name, model, *opt);

  Result result;
  const bool terminal = isatty(STDOUT_FILENO) != 0;
  for (; epoch < s.epochs; ++epoch) {
    const auto begin = std::chrono::steady_clock::now();
    auto generator = at::make_generator<at::CPUGeneratorImpl>(static_cast<std::uint64_t>(s.seed + epoch));
    const Tensor order = torch::randperm(train_data.size(), generator, torch::kLong);
    double sum = 0;
    for (std::int64_t i = 0; i < train_data.size(); i += s.batch) {
      const Tensor rows = order.slice(0, i, i + s.batch);
      const Tensor x = train_data.images.index_select(0, rows), y = train_data.labels.index_select(0, rows);
      const auto backward = [&] {
        const Tensor loss = torch::nn::functional::cross_entropy(model->forward(x), y);
        loss.backward();
        sum += loss.item<double>() * static_cast<double>(rows.size(0));
      };
      opt->zero_grad();
      if (ssam != nullptr) {
        const auto perturbed = ssam->perturb();
        backward();
      } else {
        backward();
      }
      opt->step();
      if (terminal && (i / s.batch) % 20 == 0) {
        std::printf("\r  %-4s epoch %lld  %3.0f %%  loss %.4f", name, static_cast<long long>(epoch + 1),
                    100.0 * static_cast<double>(i) / static_cast<double>(train_data.size()),
                    sum / static_cast<double>(std::min(i + s.batch, train_data.size())));
        std::fflush(stdout);
      }
    }
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    result.seconds += seconds.count();
    const Score test = evaluate(model, test_data);
    std::printf("%s  %-4s epoch %lld  train loss %.4f  test loss %.4f  accuracy %.2f %%  %.1f s\n",
                terminal ? "\r" : "", name, static_cast<long long>(epoch + 1),
                sum / static_cast<double>(train_data.size()), test.loss, 100 * test.accuracy, seconds.count());
    if (!s.save.empty()) save_run(s.save + "." + name, model, *opt, epoch + 1);
  }
  result.train = evaluate(model, train_data);
  result.test = evaluate(model, test_data);
  result.sharpness = sharpness(model, test_data, s.noise_std);
  return result;
}

void print_comparison(const Settings& s, const std::vector<std::pair<std::string, Result>>& results) {
  std::printf("\n%-6s %10s %10s %10s %9s %26s\n", "", "train loss", "test loss", "accuracy", "time",
              "rise under weight noise");
  for (const auto& [name, r] : results) {
    std::printf("%-6s %10.4f %10.4f %8.2f %% %7.1f s %26.4f\n", name.c_str(), r.train.loss, r.test.loss,
                100 * r.test.accuracy, r.seconds, r.sharpness);
  }
  std::printf("The last column is E loss(w + noise) - loss(w) on the test set, noise_std %g: the average sharpness.\n",
              s.noise_std);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const Settings s = parse(argc, argv);
    if (s.threads > 0) torch::set_num_threads(static_cast<int>(s.threads));
    const Split train_data = load_split(s, "train", s.train_examples);
    const Split test_data = load_split(s, s.synthetic ? "test" : "t10k", s.test_examples);
    std::printf("%lld training and %lld test images, lr %g, momentum %g, noise_std %g, %d threads\n",
                static_cast<long long>(train_data.size()), static_cast<long long>(test_data.size()), s.lr, s.momentum,
                s.noise_std, torch::get_num_threads());
    std::vector<std::pair<std::string, Result>> results;
    if (s.optimizer != "ssam") results.emplace_back("SGD", train(s, false, train_data, test_data));
    if (s.optimizer != "sgd") results.emplace_back("S-SAM", train(s, true, train_data, test_data));
    print_comparison(s, results);
  } catch (const c10::Error& error) {
    std::fprintf(stderr, "train_fashion_mnist: %s\n", error.what_without_backtrace());
    return 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "train_fashion_mnist: %s\n", error.what());
    return 2;
  }
  return 0;
}
