// Reads the idx files of MNIST and Fashion-MNIST, plain or gzipped: a big-endian header, then bytes.
#pragma once

#include <torch/torch.h>
#include <zlib.h>

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace example {

// The file, with or without ".gz"; gzopen reads both.
inline std::string find_idx(const std::string& folder, const std::string& name) {
  for (const char* ending : {"", ".gz"}) {
    const auto path = std::filesystem::path(folder) / (name + ending);
    if (std::filesystem::exists(path)) return path.string();
  }
  return {};
}

// A uint8 tensor of the file's shape.
inline torch::Tensor read_idx(const std::string& path) {
  const gzFile file = gzopen(path.c_str(), "rb");
  TORCH_CHECK(file != nullptr, "cannot open ", path);
  const auto read = [&](void* to, std::int64_t bytes) {
    auto* target = static_cast<char*>(to);
    while (bytes > 0) {
      const int got = gzread(file, target, static_cast<unsigned>(std::min<std::int64_t>(bytes, 1 << 20)));
      if (got <= 0) {
        gzclose(file);
        TORCH_CHECK(false, path, " ends too early: it is no complete idx file");
      }
      target += got;
      bytes -= got;
    }
  };
  const auto number = [&] {
    std::uint8_t b[4];
    read(b, 4);
    return std::int64_t{b[0]} << 24 | std::int64_t{b[1]} << 16 | std::int64_t{b[2]} << 8 | std::int64_t{b[3]};
  };
  const std::int64_t magic = number();
  if (magic >> 8 != 8) {
    gzclose(file);
    TORCH_CHECK(false, path, " does not start like an idx file of bytes");
  }
  std::vector<std::int64_t> shape;
  for (std::int64_t d = 0; d < (magic & 255); ++d) shape.push_back(number());
  torch::Tensor data = torch::empty(shape, torch::kByte);
  read(data.data_ptr<std::uint8_t>(), data.numel());
  gzclose(file);
  return data;
}

}  // namespace example
