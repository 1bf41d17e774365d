#include "planarize.hpp"

namespace qcheck {

void planarize(const std::uint8_t* image, std::size_t pixels, const float* table, float* out) noexcept {
  static_assert(CHANNELS == 3, "the loop below writes three planes");
  const float* const red = table;
  const float* const green = table + LEVELS;
  const float* const blue = table + 2 * LEVELS;
  // One pass over the pixels: the tables (3 KiB) stay in L1, each input byte is read once.
  for (std::size_t i = 0; i < pixels; ++i) {
    const std::uint8_t* const pixel = image + CHANNELS * i;
    out[i] = red[pixel[0]];
    out[pixels + i] = green[pixel[1]];
    out[2 * pixels + i] = blue[pixel[2]];
  }
}

}  // namespace qcheck
