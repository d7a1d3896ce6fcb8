// Weights and optimizer state in the layout of Python's state_dict, so that a run can move between the languages.
//   C++ to Python: write_pickle(state_dict(*model), path)      ->  model.load_state_dict(torch.load(path))
//   Python to C++: torch.save(dict(model.state_dict()), path)  ->  load_state_dict(*model, read_pickle(path))
// The optimizer's is SSAM::state_dict. Inside C++, torch::save and torch::load of LibTorch do.
// Tests: tests/cpp/test_api_checkpoint.cpp, tests/python/test_cpp_parity.py.
#pragma once

#include <torch/nn/module.h>

#include <string>

namespace torch_ssam {

// Parameters and buffers by name.
c10::IValue state_dict(const torch::nn::Module& module);

// Copies them in. Names and shapes must be those of the module: nothing is written before all are known to fit.
void load_state_dict(torch::nn::Module& module, const c10::IValue& state_dict);

// A file that Python's torch.save or torch::pickle_save wrote, and the other way round: dicts, lists, numbers, strings
// and tensors, which come to the CPU.
c10::IValue read_pickle(const std::string& path);
void write_pickle(const c10::IValue& value, const std::string& path);

}  // namespace torch_ssam
