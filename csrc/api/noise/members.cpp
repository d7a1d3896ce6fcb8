// See members.h.
#include "noise/members.h"

#include <algorithm>
#include <utility>

namespace torch_ssam::detail {

bool Members::all_trainable() const {
  return std::all_of(params.begin(), params.end(), [](const at::Tensor& p) { return p.requires_grad(); });
}

Members Members::trainable() const {
  return where([](const at::Tensor& p) { return p.requires_grad(); });
}

void Members::by_device(const std::function<void(at::Device, const Members&)>& visit) const {
  if (params.empty()) return;
  const at::Device first = params[0].device();
  if (std::all_of(params.begin(), params.end(), [&](const at::Tensor& p) { return p.device() == first; })) {
    visit(first, *this);
    return;
  }
  std::vector<std::pair<at::Device, Members>> parts;
  for (std::size_t i = 0; i < params.size(); ++i) {
    const at::Device device = params[i].device();
    auto part = std::find_if(parts.begin(), parts.end(), [&](const auto& p) { return p.first == device; });
    if (part == parts.end()) part = parts.insert(parts.end(), {device, {}});
    part->second.push_back(params[i], places[i]);
  }
  for (const auto& [device, part] : parts) visit(device, part);
}

bool Placement::look(const Groups& groups) {
  const auto same = [](const at::Tensor& a, const at::Tensor& b) { return a.is_same(b); };
  const bool again = std::exchange(again_, false);
  bool changed = known_.size() != groups.size();
  known_.resize(groups.size());
  std::int64_t first = 0;
  for (std::size_t g = 0; g < groups.size(); ++g) {
    const std::vector<at::Tensor>& params = groups[g].params();
    Members& known = known_[g];
    if (changed || !std::equal(params.begin(), params.end(), known.params.begin(), known.params.end(), same)) {
      changed = true;  // and with it the places of the groups after this one
      known = {};
      for (std::size_t i = 0; i < params.size(); ++i) known.push_back(params[i], first + static_cast<std::int64_t>(i));
    }
    first += static_cast<std::int64_t>(params.size());
  }
  return changed || again;
}

Keys Placement::keys() const {
  Keys keys;
  for (const Members& members : known_) {
    for (const at::Tensor& p : members.params) keys.insert(key_of(p));
  }
  return keys;
}

}  // namespace torch_ssam::detail
