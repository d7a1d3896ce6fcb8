// The clean weights of tensors that are perturbed: saved, found again, and put back bit for bit.
// SavedWeights knows which tensors are perturbed now, notes how we left them, and so finds what others wrote to them
// since; that is kept, and named. masters.h has clean weights that last, regenerate.h those that are made again.
// Tests: tests/cpp/test_api_driving.cpp, test_api_kept.cpp, test_api_masters.cpp.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "noise/masters.h"
#include "noise/members.h"
#include "noise/saved.h"

namespace torch_ssam::detail {

[[noreturn]] void throw_changed(const std::string& message);

// A warning where nothing may be thrown, as a program's own handler of warnings might.
void warn_quietly(const std::string& message) noexcept;

class SavedWeights {
 public:
  virtual ~SavedWeights() = default;

  // The tensors of each group, frozen ones too, and their places. Where they are others than last time, what is kept of
  // those that left is forgotten, save what takes their noise off, and `forget` gets the ones that stay.
  const std::vector<Members>& placed(const Groups& groups, const std::function<void(const Keys&)>& forget = nullptr);

  bool active() const { return count_applied_ > 0; }
  std::int64_t changes() const { return changes_; }  // moves whenever the set of perturbed tensors may have changed
  bool is_applied(const at::Tensor& param) const { return applied(param) != nullptr; }
  bool is_regenerated(const at::Tensor& param) const;  // perturbed, and without a copy
  // The saved copy while perturbed (without one a new tensor), else the tensor itself.
  at::Tensor clean_of(const at::Tensor& param) const;
  std::vector<at::Tensor> clean_of(const std::vector<at::Tensor>& params) const;

  // Whether the clean weights of a tensor are a master. Where its group asks for other ones, that waits until noise is
  // off.
  bool has_master(const at::Tensor& param, bool asked) const;
  // Of tensors that have one. Those of clean tensors have first taken what others wrote.
  std::vector<at::Tensor> masters_of(const Members& members);
  at::Tensor known_master(const at::Tensor& param) const;       // undefined where there is none
  void set_master(const at::Tensor& param, at::Tensor master);  // undefined for none
  void forget_masters(const std::vector<at::Tensor>& params);   // of clean tensors that are to have none any more

  // Tells autograd that these tensors changed, and remembers them as we left them: perturbed ones and those with a
  // master.
  void written(const std::vector<at::Tensor>& params);

  // Puts the exact clean bits back. Tensors that someone else wrote to keep what was written; these are named in the
  // result, which is empty where there are none.
  [[nodiscard]] std::string restore();
  void restore(const std::vector<at::Tensor>& params);  // throws PerturbedWeightsChanged instead
  // Restores what an update in the same pass cannot serve: tensors frozen since, and those without a copy; all, and
  // throws PerturbedWeightsChanged, where somebody else wrote.
  void ready_to_update();

 protected:
  virtual void keep_only(const Keys& keys);                // of tensors that are in a group, or perturbed
  const SavedPtr& applied(const at::Tensor& param) const;  // null while the tensor is clean
  SavedPtr copy_of(const at::Tensor& param);               // memory for its clean weights
  void note_applied(const Members& members, const std::vector<SavedPtr>& saved);

  Masters masters_;

 private:
  std::string restore_these(const std::vector<SavedPtr>& saved);
  void forget_applied(const at::Tensor& param);

  Placement placement_;
  SavedMap copies_;   // memory for clean weights, in use or not
  SavedMap applied_;  // null where the tensor is clean: a place in the map costs more than what it holds
  std::size_t count_applied_ = 0;
  std::int64_t changes_ = 0;
};

}  // namespace torch_ssam::detail
