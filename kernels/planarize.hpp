#pragma once

#include <cstddef>
#include <cstdint>

namespace qcheck {

constexpr std::size_t CHANNELS = 3;
constexpr std::size_t LEVELS = 256;  // values of an 8-bit sample

// out[c][i] = table[c][image[i][c]], by channel c and pixel i.
//   image: (pixels, 3) interleaved; table: (3, 256); out: (3, pixels), which must not overlap the others.
void planarize(const std::uint8_t* image, std::size_t pixels, const float* table, float* out) noexcept;

}  // namespace qcheck
