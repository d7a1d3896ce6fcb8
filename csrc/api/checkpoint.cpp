// See checkpoint.h and pickled.h.
#include <ATen/core/grad_mode.h>
#include <caffe2/serialize/inline_container.h>
#include <torch/csrc/jit/serialization/pickle.h>
#include <torch/csrc/jit/serialization/pickler.h>
#include <torch_ssam/checkpoint.h>

#include <fstream>
#include <iterator>
#include <vector>

#include "pickled.h"

namespace torch_ssam {

namespace detail {

Dict as_dict(const c10::IValue& value, const std::string& what) {
  TORCH_CHECK_VALUE(value.isGenericDict(), "torch_ssam: ", what, " is ", value.isNone() ? "missing" : value.tagKind(),
                    "; expected a dict.");
  return value.toGenericDict();
}

c10::IValue value_of(const Dict& dict, const c10::IValue& key) {
  const auto found = dict.find(key);
  return found == dict.end() ? c10::IValue() : found->value();
}

double as_double(const c10::IValue& value, const std::string& what) {
  if (value.isTensor() && value.toTensor().numel() == 1) return value.toTensor().item<double>();
  TORCH_CHECK_VALUE(value.isDouble() || value.isInt(), "torch_ssam: ", what, " is ", value.tagKind(),
                    "; expected a number.");
  return value.isInt() ? static_cast<double>(value.toInt()) : value.toDouble();
}

std::int64_t as_int(const c10::IValue& value, const std::string& what) {
  TORCH_CHECK_VALUE(value.isInt(), "torch_ssam: ", what, " is ", value.tagKind(), "; expected an integer.");
  return value.toInt();
}

bool as_bool(const c10::IValue& value, const std::string& what) {
  TORCH_CHECK_VALUE(value.isBool(), "torch_ssam: ", what, " is ", value.tagKind(), "; expected true or false.");
  return value.toBool();
}

std::string as_string(const c10::IValue& value, const std::string& what) {
  TORCH_CHECK_VALUE(value.isString(), "torch_ssam: ", what, " is ", value.tagKind(), "; expected a string.");
  return value.toStringRef();
}

}  // namespace detail

namespace {

std::vector<std::pair<std::string, at::Tensor>> named_tensors(const torch::nn::Module& module) {
  std::vector<std::pair<std::string, at::Tensor>> tensors;
  for (const auto& item : module.named_parameters()) tensors.emplace_back(item.key(), item.value());
  for (const auto& item : module.named_buffers()) tensors.emplace_back(item.key(), item.value());
  return tensors;
}

}  // namespace

c10::IValue state_dict(const torch::nn::Module& module) {
  detail::Dict dict = detail::new_dict();
  for (const auto& [name, tensor] : named_tensors(module)) dict.insert(name, tensor.detach());
  return dict;
}

void load_state_dict(torch::nn::Module& module, const c10::IValue& state_dict) {
  const detail::Dict dict = detail::as_dict(state_dict, "the state_dict");
  std::vector<std::pair<at::Tensor, at::Tensor>> copies;
  for (const auto& [name, tensor] : named_tensors(module)) {
    const c10::IValue value = detail::value_of(dict, name);
    TORCH_CHECK_VALUE(value.isTensor(), "torch_ssam: the state_dict has no tensor '", name, "'.");
    TORCH_CHECK_VALUE(value.toTensor().sizes() == tensor.sizes(), "torch_ssam: '", name, "' has shape ",
                      value.toTensor().sizes(), " in the state_dict and ", tensor.sizes(), " in the module.");
    copies.emplace_back(tensor, value.toTensor());
  }
  TORCH_CHECK_VALUE(dict.size() == copies.size(), "torch_ssam: the state_dict has ", dict.size(),
                    " tensors and the module ", copies.size(), "; expected the same names.");
  const at::NoGradGuard no_grad;
  for (auto& [to, from] : copies) to.copy_(from);
}

c10::IValue read_pickle(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  TORCH_CHECK_VALUE(file.good(), "torch_ssam: cannot read '", path, "'.");
  const std::vector<char> bytes{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  try {
    return torch::jit::pickle_load(bytes);
  } catch (const c10::Error& error) {
    TORCH_CHECK_VALUE(false, "torch_ssam: '", path, "' is no pickle that LibTorch reads (",
                      error.what_without_backtrace(),
                      "). It takes dicts, lists, numbers, strings and tensors, as torch.save writes them; a module's "
                      "state_dict as dict(model.state_dict()), and integers, a seed say, of 32 or of 57 to 64 bits.");
  }
}

// As torch::pickle_save, without the type tags on dicts and lists: torch.load(weights_only=True) refuses those.
void write_pickle(const c10::IValue& value, const std::string& path) {
  std::string pickled;
  torch::jit::Pickler pickler([&](const char* bytes, std::size_t count) { pickled.append(bytes, count); }, nullptr,
                              nullptr, nullptr, nullptr, /*tag_aggregates=*/false);
  pickler.protocol();
  pickler.pushIValue(value);
  pickler.stop();
  std::ofstream file(path, std::ios::binary);
  TORCH_CHECK_VALUE(file.good(), "torch_ssam: cannot write '", path, "'.");
  caffe2::serialize::PyTorchStreamWriter archive([&](const void* bytes, std::size_t count) {
    file.write(static_cast<const char*>(bytes), static_cast<std::streamsize>(count));
    return file.good() ? count : 0;
  });
  archive.writeRecord("data.pkl", pickled.data(), pickled.size());
  std::size_t i = 0;
  for (const at::Tensor& tensor : pickler.tensorData()) {
    const torch::jit::WriteableTensorData data = torch::jit::getWriteableTensorData(tensor);
    archive.writeRecord("data/" + std::to_string(i++), data.data(), data.sizeInBytes());
  }
  archive.writeEndOfFile();
  file.close();
  TORCH_CHECK_VALUE(file.good(), "torch_ssam: cannot write '", path, "': is the disk full?");
}

}  // namespace torch_ssam
