// From the bytes of a JPEG or PNG to the pixels that the model takes: what marsmith_handler/image/decoding.py does.
#pragma once

#include <string>
#include <string_view>

namespace at {
class Tensor;
}

namespace marsmith {

struct Fitting {
  long resize;  // length of the shorter side after resizing, in pixels
  long crop_height;
  long crop_width;
  bool bicubic;  // otherwise bilinear; both with antialiasing
};

// Opens torchvision's image operators; they register themselves with torch. Throws std::runtime_error.
void open_image_operators(const std::string& path);

// uint8 (3, crop_height, crop_width), RGB. Throws std::runtime_error for what is no JPEG or PNG.
at::Tensor read_picture(std::string_view body, const Fitting& fitting);

}  // namespace marsmith
