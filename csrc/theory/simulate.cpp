// Drives the simulator's loops: groups of elements are independent of each other and run to the end one by one, each
// worker taking the next, so the result is the same for any number of threads. Workers report to the calling thread,
// which alone calls `progress`. A group whose weights stop being finite is run again from the last 64 steps one by one,
// so that the step of divergence is exact and the loops need no check.
// Tests: tests/cpp/test_simulate.cpp, tests/python/test_simulate*.py.
#include "theory/simulate.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <exception>
#include <limits>
#include <mutex>
#include <numeric>
#include <thread>

#include "theory/simulate_internal.h"
#include "theory/simulate_kernels.h"

namespace torch_ssam::theory {

namespace {

constexpr std::int64_t kChunk = 64;  // steps between looks at the stop flag and at the weights

constexpr std::int64_t kRow = 32;  // rows are padded to a multiple of this

std::size_t index(std::int64_t n) { return static_cast<std::size_t>(n); }

math::Distribution noise_kind(const SimulateOptions& options) {
  switch (options.distribution) {
    case Distribution::gaussian:
      return math::Distribution::gaussian;
    case Distribution::rademacher:
      return math::Distribution::rademacher;
  }
  __builtin_unreachable();
}

// The workers of one simulation. run() calls body(item) for items 0 .. count - 1 and polls meanwhile.
class Workers {
 public:
  Workers(std::int64_t threads, std::function<void()> poll) : threads_(threads), poll_(std::move(poll)) {}

  bool stopped() const { return stop_.load(std::memory_order_relaxed); }

  void run(std::int64_t count, const std::function<void(std::int64_t)>& body) {
    std::atomic<std::int64_t> next{0};
    std::int64_t running = std::min(threads_, count);
    std::exception_ptr error;
    std::mutex mutex;
    std::condition_variable finished;
    const auto work = [&] {
      std::exception_ptr mine;
      try {
        for (std::int64_t item = next++; item < count && !stopped(); item = next++) body(item);
      } catch (...) {
        mine = std::current_exception();
        stop_ = true;
      }
      const std::lock_guard<std::mutex> lock(mutex);
      error = error ? error : mine;
      --running;
      finished.notify_all();
    };
    std::vector<std::jthread> workers;  // joins at the end of this scope, also where poll throws
    struct StopOnExit {
      std::atomic<bool>& stop;
      bool armed = true;
      ~StopOnExit() {
        if (armed) stop = true;
      }
    } guard{stop_};
    for (std::int64_t t = running; t > 0; --t) workers.emplace_back(work);
    std::unique_lock<std::mutex> lock(mutex);
    while (!finished.wait_for(lock, std::chrono::milliseconds(100), [&] { return running == 0; })) {
      lock.unlock();
      poll_();
      lock.lock();
    }
    lock.unlock();
    guard.armed = false;
    if (error) std::rethrow_exception(error);
  }

 private:
  std::int64_t threads_;
  std::function<void()> poll_;
  std::atomic<bool> stop_{false};
};

void lower(std::atomic<std::int64_t>& value, std::int64_t candidate) {
  std::int64_t current = value.load();
  while (candidate < current && !value.compare_exchange_weak(current, candidate)) {
  }
}

constexpr std::int64_t kNever = std::numeric_limits<std::int64_t>::max();

class Simulation {
 public:
  explicit Simulation(const SimulateOptions& options) : setup_(options), kernels_(simulate_kernels()) {
    const auto elements = index(setup_.replicates * setup_.features);
    const std::size_t records = setup_.records.size();
    result_.steps = setup_.records;
    result_.weights.assign(records * elements * index(setup_.depth), 0.0);
    increments_ = {std::vector<double>(elements), std::vector<double>(elements), std::vector<double>(elements)};
    diverged_ = std::vector<std::atomic<std::int64_t>>(index(setup_.replicates));
    for (auto& step : diverged_) step = kNever;
    window_ = options.steps - std::min(kIncrementWindow, options.steps / 2);
    choose_groups();
  }

  SimulationResult run() {
    const SimulateOptions& options = setup_.options;
    const std::int64_t total = options.steps * setup_.replicates * setup_.features;
    std::int64_t threads = options.threads;
    if (threads == 0) threads = std::max(1U, std::thread::hardware_concurrency());
    const auto report = [&] {
      if (!options.progress) return;
      const double share = total > 0 ? static_cast<double>(done_.load()) / static_cast<double>(total) : 1.0;
      options.progress(static_cast<std::int64_t>(share * static_cast<double>(options.steps)), options.steps);
    };
    Workers workers(threads, report);
    workers_ = &workers;
    const std::int64_t elements = setup_.replicates * setup_.features;
    workers.run((elements + group_size_ - 1) / group_size_, [&](std::int64_t group) {
      const std::int64_t first = group * group_size_;
      run_group(first, std::min(group_size_, elements - first));
    });

    const std::size_t records = setup_.records.size();
    const std::size_t pairs = records * index(setup_.replicates);
    result_.loss.assign(pairs, 0.0);
    result_.balance_gap.assign(pairs, 0.0);
    result_.product.assign(pairs * index(setup_.features), 0.0);
    result_.step_size_bound.assign(index(setup_.replicates), 0.0);
    result_.explanations.resize(index(setup_.replicates));
    for (const auto& step : diverged_) result_.diverged_at.push_back(step == kNever ? -1 : step.load());
    for (auto* flags : {&result_.collapsed, &result_.oscillating, &result_.unbalanced}) {
      flags->assign(index(setup_.replicates), 0);
    }
    // With a full covariance the bound costs features^3 for each start.
    const double d = static_cast<double>(setup_.features);
    const bool shared =
        setup_.same_start || (setup_.coupled && d * d * d * static_cast<double>(setup_.replicates) > 1e9);
    if (shared) {
      const double bound = setup_.same_start ? initial_step_size_bound(setup_, 0) : std::nan("");
      result_.step_size_bound.assign(index(setup_.replicates), bound);
    }
    workers.run(setup_.replicates, [&](std::int64_t replicate) {
      if (!shared) result_.step_size_bound[index(replicate)] = initial_step_size_bound(setup_, replicate);
      for (std::size_t record = 0; record < records && !workers.stopped(); ++record) {
        measure_record(setup_, record, replicate, result_);
      }
      if (!workers.stopped()) diagnose_replicate(setup_, increments_, replicate, result_);
    });
    done_ = total;
    report();
    return std::move(result_);
  }

 private:
  // Whole blocks of noise where coordinates are independent, else whole replicates; more at a time where they are
  // small.
  void choose_groups() {
    const std::int64_t d = setup_.features;
    if (!setup_.coupled) {
      group_size_ = math::kGaussianBlock;
      return;
    }
    const std::int64_t batch = setup_.options.batch_size > 0 ? setup_.options.batch_size : setup_.examples;
    const std::int64_t work = d * std::max<std::int64_t>(batch, setup_.full_covariance ? d : 1);
    group_size_ = d * std::max<std::int64_t>(1, std::min(256 / d, 1'000'000 / work));
    chunk_ = std::clamp<std::int64_t>(10'000'000 / (work * (group_size_ / d)), 1, kChunk);
  }

  void run_group(std::int64_t first, std::int64_t count) {
    const std::int64_t depth = setup_.depth;
    const std::int64_t stride = (count + kRow - 1) / kRow * kRow;
    const auto rows = index(depth * stride);
    std::vector<double> weights(rows), before(rows), noise_std(rows), target(index(stride)), variance(index(stride));
    std::vector<double> scratch(index(simulate_scratch(depth, stride)));
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t h = (first + i) % setup_.features;
      target[index(i)] = setup_.target(h);
      variance[index(i)] = setup_.variance[index(h)];
      for (std::int64_t layer = 0; layer < depth; ++layer) {
        noise_std[index(layer * stride + i)] = setup_.noise_std(layer, h);
        weights[index(layer * stride + i)] = setup_.init((first + i) / setup_.features, layer, h);
      }
    }
    const SimulateOptions& o = setup_.options;
    const SimulateGroup group{depth,
                              count,
                              stride,
                              first,
                              o.seed,
                              noise_kind(o),
                              o.expected,
                              o.harmonic_lr,
                              o.lr,
                              noise_std.data(),
                              target.data(),
                              variance.data(),
                              setup_.features,
                              setup_.full_covariance ? o.covariance.data() : nullptr,
                              setup_.examples > 0 ? o.inputs.data() : nullptr,
                              o.labels.data(),
                              setup_.examples,
                              o.batch_size,
                              o.radius.value_or(0.0)};
    const auto advance = [&](std::int64_t step, std::int64_t steps) {
      kernels_.advance(group, step, steps, weights.data(), scratch.data());
    };

    std::vector<unsigned char> dead(index(count), 0);
    std::vector<double> last(rows);
    std::size_t record = 0;
    std::int64_t step = 0;
    write_record(record++, first, count, stride, weights);
    while (step < o.steps && !workers_->stopped()) {
      const bool alone = step >= window_;
      const std::int64_t until = std::min(setup_.records[record], alone ? step + 1 : window_);
      const std::int64_t n = std::min(chunk_, until - step);
      before = weights;
      advance(step, n);
      if (n > 1 && count_dead(first, count, stride, weights, dead, kNever) > 0) {
        weights = before;
        for (std::int64_t k = 0; k < n; ++k) {
          advance(step + k, 1);
          count_dead(first, count, stride, weights, dead, step + k + 1);
        }
      } else if (n == 1) {
        count_dead(first, count, stride, weights, dead, step + 1);
      }
      if (alone) add_increments(step, first, count, stride, before, weights, last);
      step += n;
      done_ += n * count;
      if (step == setup_.records[record]) write_record(record++, first, count, stride, weights);
      if (std::find(dead.begin(), dead.end(), 0) == dead.end()) {
        done_ += (o.steps - step) * count;
        return;
      }
    }
  }

  // Elements that stopped being finite; with a step, notes it and counts them as known.
  std::int64_t count_dead(std::int64_t first, std::int64_t count, std::int64_t stride,
                          const std::vector<double>& weights, std::vector<unsigned char>& dead, std::int64_t step) {
    std::int64_t found = 0;
    for (std::int64_t i = 0; i < count; ++i) {
      double sum = 0;  // of zeros and NaN
      for (std::int64_t layer = 0; layer < setup_.depth; ++layer) {
        const double w = weights[index(layer * stride + i)];
        sum += w - w;
      }
      if (sum == 0 || dead[index(i)] != 0) continue;
      ++found;
      if (step == kNever) continue;
      dead[index(i)] = 1;
      lower(diverged_[index((first + i) / setup_.features)], step);
    }
    return found;
  }

  void add_increments(std::int64_t step, std::int64_t first, std::int64_t count, std::int64_t stride,
                      const std::vector<double>& before, const std::vector<double>& after, std::vector<double>& last) {
    const bool early = step < (window_ + setup_.options.steps) / 2;
    for (std::int64_t layer = 0; layer < setup_.depth; ++layer) {
      for (std::int64_t i = 0; i < count; ++i) {
        const std::size_t at = index(layer * stride + i);
        const std::size_t element = index(first + i);
        const double delta = after[at] - before[at];
        increments_.lagged[element] += delta * last[at];
        (early ? increments_.first : increments_.second)[element] += delta * delta;
        last[at] = delta;
      }
    }
  }

  void write_record(std::size_t record, std::int64_t first, std::int64_t count, std::int64_t stride,
                    const std::vector<double>& weights) {
    const std::int64_t d = setup_.features;
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t replicate = (first + i) / d;
      const std::int64_t h = (first + i) % d;
      for (std::int64_t layer = 0; layer < setup_.depth; ++layer) {
        const auto row = (static_cast<std::int64_t>(record) * setup_.replicates + replicate) * setup_.depth + layer;
        result_.weights[index(row * d + h)] = weights[index(layer * stride + i)];
      }
    }
  }

  SimulateSetup setup_;
  const SimulateKernels& kernels_;
  SimulationResult result_;
  Increments increments_;
  std::vector<std::atomic<std::int64_t>> diverged_;
  std::atomic<std::int64_t> done_{0};
  std::int64_t window_ = 0;
  std::int64_t group_size_ = 1;
  std::int64_t chunk_ = kChunk;
  Workers* workers_ = nullptr;
};

}  // namespace

SimulationResult simulate(const SimulateOptions& options) { return Simulation(options).run(); }

double simulate_noise_alone(const SimulateOptions& options) {
  const SimulateSetup setup(options);
  SimulateGroup group{};
  group.depth = setup.depth;
  group.seed = options.seed;
  group.distribution = noise_kind(options);
  std::vector<float> values(index(setup.depth * math::kGaussianBlock));
  const std::int64_t elements = setup.replicates * setup.features;
  for (; group.first_element < elements; group.first_element += math::kGaussianBlock) {
    simulate_kernels().noise_alone(group, 0, options.steps, values.data());
  }
  return std::accumulate(values.begin(), values.end(), 0.0);
}

}  // namespace torch_ssam::theory
