// What is compiled for each processor: the two passes of Pillow's resize, each rounded to bytes as there, and the survey.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "coefficients.hpp"

namespace qcheck {

constexpr int CHANNELS = 3;
constexpr int SLACK = 48;  // bytes that a pass may read or write beyond a line's end
constexpr int MOST_ROWS = 2;
constexpr int LOW_BITS = 15;
constexpr int LOW_MASK = (1 << LOW_BITS) - 1;
constexpr int CELL = 32, SURVEY_LINES = 8, STATISTICS = 8;  // see survey.hpp

/// Weights as the passes take them, those of two neighbouring taps in one word: a weight is high * 2^LOW_BITS + low, and
/// both fit the 16 bits that processors multiply best.
struct Pairs {
  explicit Pairs(const Axis& axis);
  std::vector<std::int32_t> high, low;  // [out * taps / 2]
};

struct Passes {
  const char* name;
  int rows;  // that `horizontal` takes at once
  /// `rows` lines of packed RGB, `axis.in` pixels each and readable for SLACK more bytes, to `rows` lines of `axis.out`
  /// pixels, writable likewise.
  void (*horizontal)(const std::uint8_t* const* lines, const Axis& axis, const Pairs& pairs, std::uint8_t* const* out);
  /// One line of `bytes` bytes out of `taps` (even) lines weighted by `high` and `low` [taps / 2].
  void (*vertical)(const std::uint8_t* const* lines, int taps, const std::int32_t* high, const std::int32_t* low,
                   std::size_t bytes, std::uint8_t* out);
  /// A row of cells of the survey out of its SURVEY_LINES lines of `width` pixels: STATISTICS a cell.
  void (*survey)(const std::uint8_t* const* lines, int width, float* out);
};

std::vector<const Passes*> usable_passes();  // on this processor, the fastest first

}  // namespace qcheck
