// Registers the kernels with Python; checks dtypes, shapes and layout, and computes nothing.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstddef>
#include <cstdint>
#include <string>

#include "planarize.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using Any = nb::ndarray<nb::ro, nb::device::cpu>;
using Planes = nb::ndarray<nb::numpy, float, nb::ndim<3>, nb::c_contig>;

std::string shape_of(const Any& array) {
  std::string text = "(";
  for (std::size_t i = 0; i < array.ndim(); ++i) {
    text += (i ? ", " : "") + std::to_string(array.shape(i));
  }
  return text + ")";
}

bool c_contiguous(const Any& array) {
  std::int64_t step = 1;
  for (std::size_t i = array.ndim(); i-- > 0;) {
    // The stride of an axis of length 1 says nothing about the layout.
    if (array.shape(i) != 1 && array.stride(i) != step) return false;
    step *= static_cast<std::int64_t>(array.shape(i));
  }
  return true;
}

Planes planarize(const Any& image, const Any& table) {
  using qcheck::CHANNELS;
  using qcheck::LEVELS;
  if (image.dtype() != nb::dtype<std::uint8_t>()) throw nb::type_error("planarize: image must be uint8");
  if (table.dtype() != nb::dtype<float>()) throw nb::type_error("planarize: table must be float32");
  if (image.ndim() != 3 || image.shape(2) != CHANNELS || image.size() == 0) {
    const auto message = "planarize: image must be (height, width, 3) and not empty, got " + shape_of(image);
    throw nb::value_error(message.c_str());
  }
  if (table.ndim() != 2 || table.shape(0) != CHANNELS || table.shape(1) != LEVELS) {
    const auto message = "planarize: table must be (3, 256), got " + shape_of(table);
    throw nb::value_error(message.c_str());
  }
  if (!c_contiguous(image)) throw nb::value_error("planarize: image must be C-contiguous");
  if (!c_contiguous(table)) throw nb::value_error("planarize: table must be C-contiguous");

  const std::size_t height = image.shape(0), width = image.shape(1);
  float* const out = new float[CHANNELS * height * width];
  nb::capsule owner(out, [](void* data) noexcept { delete[] static_cast<float*>(data); });
  {
    nb::gil_scoped_release release;
    qcheck::planarize(static_cast<const std::uint8_t*>(image.data()), height * width,
                      static_cast<const float*>(table.data()), out);
  }
  return Planes(out, {CHANNELS, height, width}, owner);
}

}  // namespace

NB_MODULE(_kernels, module) {
  module.def("planarize", &planarize, "image"_a, "table"_a,
             "planarize(image, table) -> float32 (3, H, W): table[c][image[y][x][c]].\n\n"
             "image: uint8 (H, W, 3), C-contiguous, not empty; table: float32 (3, 256), C-contiguous.\n"
             "Releases the GIL. TypeError for a wrong dtype, ValueError for a wrong shape or layout.");
}
