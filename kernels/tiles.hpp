// Crop, resize, normalise and lay out: from a photo's bytes to a model's input in one pass, tile by tile.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "passes.hpp"

namespace qcheck {

struct Image {  // packed RGB lines, `stride` bytes apart (it may be negative)
  const std::uint8_t* data;
  std::ptrdiff_t stride;
  int width, height;
};

struct Tile {  // a box of the image and the size it is brought to
  int x, y, width, height, out_width, out_height;
};

enum class Layout {
  planar,  // (3, out_height, out_width)
  patches  // Qwen2-VL's: (patches, 3 * repeats * side * side), merge x merge patches together
};

struct Patches {
  int side = 1, merge = 1, repeats = 1;  // repeats: of a still picture along time
};

/// Whether the pass along the height goes first: Pillow's rule since its version 13. It matters, because each pass rounds
/// to bytes.
bool along_goes_first(const Tile& tile);

/// Fills `out[i]` with tile i, each value `table[channel][byte]`; Value is float or the bits of a half. `survey`: null, or
/// the image's map to fill too, see survey.hpp.
template <class Value>
void render(const Passes& passes, const Image& image, const std::vector<Tile>& tiles, const Value* table,
            Layout layout, const Patches& patches, Value* const* out, int threads, float* survey = nullptr);

}  // namespace qcheck
