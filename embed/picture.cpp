#include "picture.hpp"

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>
#include <dlfcn.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace marsmith {
namespace {

constexpr std::int64_t kRgb = 3;  // torchvision.io.ImageReadMode.RGB
constexpr std::int64_t kMostPixels = 50'000'000;

at::Tensor decode(std::string_view body) {
  const bool jpeg = body.substr(0, 3) == "\xff\xd8\xff";
  if (!jpeg && body.substr(0, 8) != "\x89PNG\r\n\x1a\n") throw std::runtime_error("the picture is neither JPEG nor PNG");
  const char* name = jpeg ? "image::decode_jpeg" : "image::decode_png";
  const auto found = c10::Dispatcher::singleton().findSchema({name, ""});
  if (!found) throw std::runtime_error(std::string("torchvision's operators have no ") + name);
  const at::Tensor bytes = at::empty({static_cast<std::int64_t>(body.size())}, at::kByte);
  std::copy(body.begin(), body.end(), bytes.data_ptr<std::uint8_t>());
  constexpr bool turn_upright = true;
  torch::jit::Stack stack{bytes, kRgb, turn_upright};
  found->callBoxed(&stack);
  const at::Tensor pixels = stack.at(0).toTensor();
  // 16 bits a channel, in numbers or in uint16: the upper byte.
  return pixels.scalar_type() == at::kByte ? pixels : pixels.to(at::kInt).bitwise_right_shift(8).to(at::kByte);
}

at::Tensor resized(const at::Tensor& pixels, const Fitting& fitting) {
  const std::int64_t height = pixels.size(1), width = pixels.size(2);
  const std::int64_t shorter = std::min(height, width), longer = std::max(height, width);
  // Rounded down, as torchvision's Resize does.
  const auto far = static_cast<std::int64_t>(static_cast<double>(fitting.resize * longer) / static_cast<double>(shorter));
  if (far * fitting.resize > kMostPixels) throw std::runtime_error("the picture is far too long for its width");
  const std::int64_t size[] = {height <= width ? fitting.resize : far, height <= width ? far : fitting.resize};
  const at::Tensor batch = pixels.unsqueeze(0).contiguous(at::MemoryFormat::ChannelsLast);
  const at::Tensor result = fitting.bicubic ? at::_upsample_bicubic2d_aa(batch, size, false)
                                            : at::_upsample_bilinear2d_aa(batch, size, false);
  return result.squeeze(0);
}

// Python's round: halves go to the even neighbour.
std::int64_t rounded_half(std::int64_t value) { return std::lrint(static_cast<double>(value) / 2.0); }

at::Tensor centre(const at::Tensor& pixels, std::int64_t height, std::int64_t width) {
  at::Tensor whole = pixels;
  const std::int64_t missing_rows = std::max<std::int64_t>(0, height - pixels.size(1));
  const std::int64_t missing_columns = std::max<std::int64_t>(0, width - pixels.size(2));
  if (missing_rows > 0 || missing_columns > 0) {
    const std::int64_t padding[] = {missing_columns / 2, missing_columns - missing_columns / 2, missing_rows / 2,
                                    missing_rows - missing_rows / 2};
    whole = at::constant_pad_nd(pixels, padding, 0);
  }
  const std::int64_t top = rounded_half(whole.size(1) - height), left = rounded_half(whole.size(2) - width);
  return whole.narrow(1, top, height).narrow(2, left, width).contiguous();
}

}  // namespace

void open_image_operators(const std::string& path) {
  // Found beside the libraries that this program is linked to; the operators need it, and would look elsewhere.
  ::dlopen("libtorch.so", RTLD_NOW | RTLD_GLOBAL);
  if (::dlopen(path.c_str(), RTLD_NOW | RTLD_GLOBAL) == nullptr) {
    throw std::runtime_error("torchvision's image operators do not open: " + std::string(::dlerror()));
  }
}

at::Tensor read_picture(std::string_view body, const Fitting& fitting) {
  return centre(resized(decode(body), fitting), fitting.crop_height, fitting.crop_width);
}

}  // namespace marsmith
