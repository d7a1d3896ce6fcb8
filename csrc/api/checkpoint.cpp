// See checkpoint.h.
#include <ATen/core/grad_mode.h>
#include <caffe2/serialize/file_adapter.h>
#include <caffe2/serialize/inline_container.h>
#include <torch/csrc/jit/serialization/pickler.h>
#include <torch/csrc/jit/serialization/unpickler.h>
#include <torch_ssam/checkpoint.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <vector>

#include "pickled.h"

namespace torch_ssam {

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
  TORCH_CHECK_VALUE(std::ifstream(path, std::ios::binary).good(), "torch_ssam: cannot read '", path, "'.");
  try {
    caffe2::serialize::PyTorchStreamReader archive(std::make_unique<caffe2::serialize::FileAdapter>(path));
    const auto [data, size] = archive.getRecord("data.pkl");
    const std::string pickle = detail::widen_integers({static_cast<const char*>(data.get()), size});
    std::size_t at = 0;
    const auto read = [&](char* to, std::size_t count) {
      count = std::min(count, pickle.size() - at);
      std::memcpy(to, pickle.data() + at, count);
      at += count;
      return count;
    };
    const auto tensor_data = [&](const std::string& name) { return std::get<0>(archive.getRecord("data/" + name)); };
    // As map_location="cpu": whoever takes a tensor moves it to where it belongs.
    torch::jit::Unpickler unpickler(read, nullptr, nullptr, tensor_data, at::Device(at::kCPU));
    return unpickler.parse_ivalue();
  } catch (const c10::Error& error) {
    C10_THROW_ERROR(
        ValueError,
        c10::str("torch_ssam: '", path, "' is no pickle that LibTorch reads (", error.what_without_backtrace(),
                 "). It takes dicts, lists, numbers, strings and tensors, as torch.save writes them; a module's "
                 "state_dict as dict(model.state_dict())."));
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
