// Classify images with a model archive, without Python:
//
//     marsmith-embed model_store/efficientnet_lite0-1.0.mar photo.jpg
//
// Prints a line for each image: {"label": probability, ...}, the five most probable classes, best first.
// Exit code 1: it could not, 2: usage.

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <caffe2/serialize/in_memory_adapter.h>
#include <torch/csrc/jit/serialization/import.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <set>
#include <stdexcept>
#include <string>

#include "archive.hpp"
#include "json.hpp"
#include "picture.hpp"

namespace {

using namespace marsmith;

std::string file_content(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  if (!stream) throw std::runtime_error(path + ": cannot be read");
  return {std::istreambuf_iterator<char>(stream), {}};
}

Fitting fitting_of(const Archive& archive) {
  const Json report = parse_json(archive.member("MAR-INF/export.json"));
  const Json& settings = report.at("preprocessing").at("byTheHandler");
  const std::string& interpolation = settings.at("interpolation").text();
  if (interpolation != "bilinear" && interpolation != "bicubic") throw BadArchive("no interpolation " + interpolation);
  const Fitting fitting{settings.at("resize").whole(), settings.at("crop").at(0).whole(),
                        settings.at("crop").at(1).whole(), interpolation == "bicubic"};
  const auto absurd = [](long pixels) { return pixels < 1 || pixels > 10'000; };
  if (absurd(fitting.resize) || absurd(fitting.crop_height) || absurd(fitting.crop_width)) {
    throw BadArchive("it resizes or crops to a size that no model takes");
  }
  return fitting;
}

torch::jit::Module load_module(const Archive& archive) {
  const Json manifest = parse_json(archive.member("MAR-INF/MANIFEST.json"));
  const std::string name = manifest.at("model").at("serializedFile").text();
  const std::string_view content = archive.member(name);
  // Read in place: the member is stored as it is, and its records are aligned.
  auto reader = std::make_shared<caffe2::serialize::MemoryReadAdapter>(content.data(), static_cast<off_t>(content.size()));
  try {
    torch::jit::Module module = torch::jit::load(std::move(reader), at::Device(at::kCPU));
    module.eval();
    return module;
  } catch (const c10::Error& error) {
    throw BadArchive(name + " is no TorchScript that this libtorch reads: " + error.what_without_backtrace());
  }
}

std::string label_of(const Json& labels, std::int64_t index) {
  const std::string key = std::to_string(index);
  if (!labels.has(key)) return key;
  const Json& entry = labels.at(key);
  // TorchServe's own examples write ["n02123045", "tabby"].
  return std::holds_alternative<Json::List>(entry.value) ? entry.at(1).text() : entry.text();
}

void print_best(const at::Tensor& probabilities, const Json& labels) {
  const auto [values, indices] = probabilities.topk(std::min<std::int64_t>(5, probabilities.size(0)));
  std::set<std::string> seen;
  std::string line = "{";
  for (std::int64_t i = 0; i < values.size(0); ++i) {
    const std::string label = label_of(labels, indices[i].item<std::int64_t>());
    if (!seen.insert(label).second) continue;
    char number[32];
    std::snprintf(number, sizeof number, "%.9g", values[i].item<double>());
    line += (line.size() > 1 ? ", " : "") + quoted(label) + ": " + number;
  }
  std::puts((line + "}").c_str());
}

void classify(const std::string& archive_path, char** images, const std::string& operators) {
  const c10::InferenceMode guard;
  const Archive archive(archive_path);
  const Fitting fitting = fitting_of(archive);
  const std::string names = "index_to_name.json";
  const Json labels = archive.has(names) ? parse_json(archive.member(names)) : Json{Json::Object{}};
  open_image_operators(operators);
  torch::jit::Module module = load_module(archive);
  for (; *images != nullptr; ++images) {
    const at::Tensor image = read_picture(file_content(*images), fitting);
    const at::Tensor probabilities = module.forward({image.unsqueeze(0)}).toTensor();
    if (probabilities.dim() != 2 || probabilities.size(0) != 1) throw BadArchive("its model is no image classifier");
    print_best(probabilities[0], labels);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fputs("usage: marsmith-embed ARCHIVE.mar IMAGE...    (JPEG or PNG)\n", stderr);
    return 2;
  }
  const char* operators = std::getenv("MARSMITH_IMAGE_OPERATORS");
  try {
    classify(argv[1], argv + 2, operators != nullptr ? operators : IMAGE_OPERATORS);
  } catch (const c10::Error& error) {
    std::fprintf(stderr, "marsmith-embed: error: %s\n", error.what_without_backtrace());
    return 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "marsmith-embed: error: %s\n", error.what());
    return 1;
  }
  return 0;
}
