// Registers the kernels with Python. Everything that comes in is checked here, before any of its memory is touched.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "survey.hpp"
#include "tiles.hpp"
#if defined(QCHECK_CUDA)
#include "tiles_cuda.hpp"
#endif

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using Any = nb::ndarray<nb::ro, nb::device::cpu>;
using Map = nb::ndarray<nb::device::cpu>;
using Corners = std::tuple<std::int64_t, std::int64_t, std::int64_t, std::int64_t>;
using Size = std::tuple<std::int64_t, std::int64_t>;
using PatchSpec = std::tuple<std::int64_t, std::int64_t, std::int64_t>;

constexpr std::int64_t MOST_SIDE = 1 << 20;              // of an image or a tile, pixels
constexpr std::int64_t MOST_VALUES = std::int64_t{1} << 34;  // of the result

[[noreturn]] void refuse(const std::string& message) { throw nb::value_error(("render: " + message).c_str()); }

template <class Array>
std::string shape_of(const Array& array) {
  std::string text = "(";
  for (std::size_t i = 0; i < array.ndim(); ++i) text += (i ? ", " : "") + std::to_string(array.shape(i));
  return text + ")";
}

template <class Array>
qcheck::Image checked_image(const Array& image) {
  if (image.dtype() != nb::dtype<std::uint8_t>()) refuse("the image must be uint8");
  if (image.ndim() != 3 || image.shape(2) != qcheck::CHANNELS || image.size() == 0)
    refuse("the image must be (height, width, 3) and not empty, got " + shape_of(image));
  const std::int64_t height = image.shape(0), width = image.shape(1);
  if (height > MOST_SIDE || width > MOST_SIDE) refuse("the image is too large: " + shape_of(image));
  // The stride of an axis of length 1 says nothing.
  if (image.stride(2) != 1 || (width > 1 && image.stride(1) != qcheck::CHANNELS))
    refuse("the pixels of the image's rows must lie side by side; rows may be any distance apart");
  const std::int64_t stride = height > 1 ? image.stride(0) : qcheck::CHANNELS * width;
  if (stride > -qcheck::CHANNELS * width && stride < qcheck::CHANNELS * width)
    refuse("the image's rows must not overlap");
  return {static_cast<const std::uint8_t*>(image.data()), static_cast<std::ptrdiff_t>(stride), static_cast<int>(width),
          static_cast<int>(height)};
}

std::vector<qcheck::Tile> checked_tiles(const qcheck::Image& image, const std::vector<Corners>& boxes,
                                        const std::vector<Size>& sizes) {
  if (boxes.empty()) refuse("there are no boxes");
  if (boxes.size() != sizes.size())
    refuse("as many sizes as boxes are needed, got " + std::to_string(sizes.size()) + " and " +
           std::to_string(boxes.size()));
  std::vector<qcheck::Tile> tiles;
  for (std::size_t i = 0; i < boxes.size(); ++i) {
    const auto [x1, y1, x2, y2] = boxes[i];
    const auto [width, height] = sizes[i];
    const std::string which = " of tile " + std::to_string(i);
    if (!(0 <= x1 && x1 < x2 && x2 <= image.width && 0 <= y1 && y1 < y2 && y2 <= image.height))
      refuse("the box" + which + " must lie in the image of " + std::to_string(image.width) + "x" +
             std::to_string(image.height) + " and not be empty, got [" + std::to_string(x1) + ", " +
             std::to_string(y1) + ", " + std::to_string(x2) + ", " + std::to_string(y2) + "]");
    if (!(0 < width && width <= MOST_SIDE && 0 < height && height <= MOST_SIDE))
      refuse("the size" + which + " must be 1.." + std::to_string(MOST_SIDE) + " a side, got " +
             std::to_string(width) + "x" + std::to_string(height));
    tiles.push_back({static_cast<int>(x1), static_cast<int>(y1), static_cast<int>(x2 - x1), static_cast<int>(y2 - y1),
                     static_cast<int>(width), static_cast<int>(height)});
  }
  return tiles;
}

qcheck::Patches checked_patches(const PatchSpec& spec, const std::vector<qcheck::Tile>& tiles) {
  const auto [side, merge, repeats] = spec;
  if (!(0 < side && side <= 256 && 0 < merge && merge <= 256 && 0 < repeats && repeats <= 256))
    refuse("side, merge and repeats of patches must be 1..256");
  for (const auto& tile : tiles)
    if (tile.out_width % (side * merge) || tile.out_height % (side * merge))
      refuse("with patches, sizes must be multiples of " + std::to_string(side * merge) + ", got " +
             std::to_string(tile.out_width) + "x" + std::to_string(tile.out_height));
  return {static_cast<int>(side), static_cast<int>(merge), static_cast<int>(repeats)};
}

/// Where each tile's values begin, and after the last their number.
std::vector<std::int64_t> starts_of(const std::vector<qcheck::Tile>& tiles,
                                    const std::optional<qcheck::Patches>& patches) {
  std::vector<std::int64_t> starts{0};
  for (const auto& tile : tiles) {
    const std::int64_t pixels = static_cast<std::int64_t>(tile.out_width) * tile.out_height;
    starts.push_back(starts.back() + qcheck::CHANNELS * pixels * (patches ? patches->repeats : 1));
    if (starts.back() > MOST_VALUES) refuse("the result would be too large");
  }
  return starts;
}

std::vector<std::size_t> shape_of_result(const std::vector<qcheck::Tile>& tiles,
                                         const std::optional<qcheck::Patches>& patches, std::int64_t total) {
  if (patches) {
    const std::int64_t one = qcheck::CHANNELS * patches->repeats * patches->side * patches->side;
    return {static_cast<std::size_t>(total / one), static_cast<std::size_t>(one)};
  }
  return {tiles.size(), qcheck::CHANNELS, static_cast<std::size_t>(tiles[0].out_height),
          static_cast<std::size_t>(tiles[0].out_width)};
}

/// Where the map of the survey goes: null if it is not asked for.
template <class Array>
float* checked_survey(const std::optional<Array>& survey, const qcheck::Image& image) {
  if (!survey) return nullptr;
  const std::size_t rows = qcheck::cells_along(image.height), columns = qcheck::cells_along(image.width);
  const bool fits = survey->dtype() == nb::dtype<float>() && survey->ndim() == 3 && survey->shape(0) == rows &&
                    survey->shape(1) == columns && survey->shape(2) == qcheck::STATISTICS && survey->stride(2) == 1 &&
                    (columns == 1 || survey->stride(1) == qcheck::STATISTICS) &&
                    (rows == 1 || survey->stride(0) == static_cast<std::int64_t>(columns) * qcheck::STATISTICS);
  if (!fits)
    refuse("the survey must be float32, contiguous and (" + std::to_string(rows) + ", " + std::to_string(columns) +
           ", " + std::to_string(qcheck::STATISTICS) + "), got " + shape_of(*survey));
  return static_cast<float*>(survey->data());
}

template <class Value>
nb::object rendered(const qcheck::Passes& passes, const qcheck::Image& image, const std::vector<qcheck::Tile>& tiles,
                    const Any& table, const std::optional<qcheck::Patches>& patches, int threads, float* survey) {
  const auto starts = starts_of(tiles, patches);
  std::unique_ptr<Value[]> values(new Value[starts.back()]);
  std::vector<Value*> out;
  for (std::size_t i = 0; i < tiles.size(); ++i) out.push_back(values.get() + starts[i]);
  {
    nb::gil_scoped_release release;
    qcheck::render<Value>(passes, image, tiles, static_cast<const Value*>(table.data()),
                          patches ? qcheck::Layout::patches : qcheck::Layout::planar, patches.value_or(qcheck::Patches{}),
                          out.data(), threads, survey);
  }
  nb::capsule owner(values.get(), [](void* data) noexcept { delete[] static_cast<Value*>(data); });
  Value* const data = values.release();
  const auto shape = shape_of_result(tiles, patches, starts.back());
  return nb::cast(nb::ndarray<nb::numpy>(data, shape.size(), shape.data(), owner, nullptr, table.dtype()));
}

/// What is asked for, checked.
struct Request {
  qcheck::Image image;
  std::vector<qcheck::Tile> tiles;
  std::optional<qcheck::Patches> patches;
  bool half;
};

template <class Array>
Request checked(const Array& image, const std::vector<Corners>& boxes, const std::vector<Size>& sizes, const Any& table,
                const std::optional<PatchSpec>& patches) {
  Request request{checked_image(image), {}, {}, false};
  request.tiles = checked_tiles(request.image, boxes, sizes);
  request.half =
      table.dtype() == nb::dlpack::dtype{static_cast<std::uint8_t>(nb::dlpack::dtype_code::Float), 16, 1};
  if (!request.half && table.dtype() != nb::dtype<float>()) refuse("the table must be float32 or float16");
  if (table.ndim() != 2 || table.shape(0) != qcheck::CHANNELS || table.shape(1) != 256 || table.stride(1) != 1 ||
      table.stride(0) != 256)
    refuse("the table must be (3, 256) and contiguous, got " + shape_of(table));
  if (patches) request.patches = checked_patches(*patches, request.tiles);
  for (const auto& tile : request.tiles)
    if (!patches && (tile.out_width != request.tiles[0].out_width || tile.out_height != request.tiles[0].out_height))
      refuse("without patches, all tiles must be of one size");
  return request;
}

nb::object render(const Any& image, const std::vector<Corners>& boxes, const std::vector<Size>& sizes, const Any& table,
                  const std::optional<PatchSpec>& patches, int threads, const std::string& processor,
                  const std::optional<Map>& survey) {
  const auto [source, tiles, layout, half] = checked(image, boxes, sizes, table, patches);
  if (threads < 1 || threads > 256) refuse("threads must be 1..256");
  float* const map = checked_survey(survey, source);
  for (const auto* passes : qcheck::usable_passes())
    if (processor.empty() || processor == passes->name)
      return half ? rendered<std::uint16_t>(*passes, source, tiles, table, layout, threads, map)
                  : rendered<float>(*passes, source, tiles, table, layout, threads, map);
  refuse("this processor has no " + processor);
}

#if defined(QCHECK_CUDA)
using OnGpu = nb::ndarray<nb::ro, nb::device::cuda>;
using IntoGpu = nb::ndarray<nb::device::cuda>;

nb::object render_cuda(const OnGpu& image, const std::vector<Corners>& boxes, const std::vector<Size>& sizes,
                       const Any& table, const std::optional<PatchSpec>& patches, const std::optional<IntoGpu>& out,
                       std::uintptr_t stream, const std::optional<IntoGpu>& survey) {
  const auto [source, tiles, layout, half] = checked(image, boxes, sizes, table, patches);
  const auto total = starts_of(tiles, layout).back();
  const auto shape = shape_of_result(tiles, layout, total);
  if (out) {
    bool fits = out->dtype() == table.dtype() && out->ndim() == shape.size() && out->device_id() == image.device_id();
    std::int64_t step = 1;
    for (std::size_t i = shape.size(); fits && i-- > 0; step *= static_cast<std::int64_t>(shape[i]))
      fits = out->shape(i) == shape[i] && (shape[i] == 1 || out->stride(i) == step);
    if (!fits) refuse("out must be contiguous, of the result's shape and the table's dtype, on the image's device");
  }
  float* const map = checked_survey(survey, source);
  if (survey && survey->device_id() != image.device_id()) refuse("the survey must be on the image's device");
  const qcheck::cuda::OnDevice device(image.device_id());
  void* const values = out ? out->data() : qcheck::cuda::allocate(total * (half ? 2 : 4), stream);
  // Freed as CUDA does it, after all work of the device: the stream may be gone by then.
  nb::object owner = out ? nb::cast(*out) : nb::capsule(values, [](void* data) noexcept { qcheck::cuda::release(data); });
  const auto how = layout ? qcheck::Layout::patches : qcheck::Layout::planar;
  {
    nb::gil_scoped_release release;
    if (half)
      qcheck::cuda::render(source, tiles, static_cast<const std::uint16_t*>(table.data()), how,
                           layout.value_or(qcheck::Patches{}), static_cast<std::uint16_t*>(values), stream, map);
    else
      qcheck::cuda::render(source, tiles, static_cast<const float*>(table.data()), how,
                           layout.value_or(qcheck::Patches{}), static_cast<float*>(values), stream, map);
  }
  return nb::cast(nb::ndarray<nb::array_api>(values, shape.size(), shape.data(), owner, nullptr, table.dtype(),
                                             nb::device::cuda::value, image.device_id()));
}
#endif

}  // namespace

NB_MODULE(_kernels, module) {
  module.def("render", &render, "image"_a, "boxes"_a, "sizes"_a, "table"_a, "patches"_a = nb::none(), "threads"_a = 1,
             "processor"_a = "", "survey"_a = nb::none(), "See _kernels.pyi.");
  module.def("processors", [] {
    std::vector<std::string> names;
    for (const auto* passes : qcheck::usable_passes()) names.emplace_back(passes->name);
    return names;
  });
#if defined(QCHECK_CUDA)
  module.def("render_cuda", &render_cuda, "image"_a, "boxes"_a, "sizes"_a, "table"_a, "patches"_a = nb::none(),
             "out"_a = nb::none(), "stream"_a = 0, "survey"_a = nb::none(), "See _kernels.pyi.");
  module.def("cuda_devices", &qcheck::cuda::devices);
#else
  module.def("cuda_devices", [] { return 0; });
#endif
}
