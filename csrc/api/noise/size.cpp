// See size.h.
#include "noise/size.h"

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>

#include <cmath>
#include <sstream>

#include "noise/weights.h"

namespace torch_ssam::detail {

void NoiseSize::look(const Members& members, const GroupNoise& group,
                     const std::function<at::Tensor(const at::Tensor&)>& clean_of) {
  if (members.params.empty() || group.scale != "isotropic") return;
  double& limit = limits_[members.places.front()];
  const double noise_std = group.noise.noise_std;
  if (noise_std <= limit) return;
  limit = 2 * noise_std;
  const at::NoGradGuard no_grad;
  double smallest = 0;
  std::size_t worst = 0, count = 0;
  for (std::size_t i = 0; i < members.params.size(); ++i) {
    const at::Tensor& p = members.params[i];
    if (p.dim() < 2 || p.numel() == 0 || !p.requires_grad()) continue;
    const at::Tensor clean = clean_of(p).detach();
    const at::ScalarType wide = clean.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
    const double norm = at::linalg_vector_norm(clean, 2, c10::nullopt, false, wide).item().toDouble();
    const double rms = norm / std::sqrt(static_cast<double>(p.numel()));
    if (!(rms > 0 && rms < 2 * noise_std)) continue;
    if (count++ == 0 || rms < smallest) {
      smallest = rms;
      worst = i;
    }
  }
  if (count == 0) return;
  std::ostringstream text;
  text << "torch_ssam: noise_std " << noise_std << " is " << noise_std / smallest << " times the RMS weight "
       << smallest << " of parameter " << members.places[worst] << " of shape " << members.params[worst].sizes();
  if (count > 1) text << ", and more than half of it for " << count - 1 << (count > 2 ? " others" : " other");
  text << ": noise of that size drowns weights. Take a noise_std below " << smallest / 2
       << ", a smaller one in a group of its own for such tensors, or scale(\"filter\"), under which noise_std is a "
          "part of each filter's norm.";
  warn_quietly(text.str());
}

}  // namespace torch_ssam::detail
