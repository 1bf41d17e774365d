// What a photo is like in each cell of CELL x CELL of its own pixels, whatever its views leave of it: statistics of a
// quarter of the cell's lines, in pairs from the middle of every 8 lines, so that JPEG's grid never lies between the
// two. All sums are whole numbers, and so every processor comes to the same bits. Beyond its edge a photo goes on with
// its last line and column.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "anywhere.hpp"
#include "passes.hpp"
#include "tiles.hpp"

namespace qcheck {

constexpr int GRID = 8;  // of JPEG's blocks
constexpr int PAIRS_OF_LINES = CELL / GRID;
constexpr int SAMPLES = SURVEY_LINES * CELL;
constexpr int COEFFICIENTS = SAMPLES / 4;  // of 2 x 2 pixels each
constexpr int LAG = 4;                     // pixels; half of JPEG's grid
constexpr int DARKEST = 2, BRIGHTEST = 253;  // what is at most, at least this is clipped, but for JPEG's rounding

/// The `line`-th of a cell row's SURVEY_LINES lines, counted from the cell row's first.
QCHECK_ANYWHERE constexpr int survey_line(int line) { return line / 2 * GRID + GRID / 2 - 1 + line % 2; }

/// Of one cell. Luma is (77 R + 150 G + 29 B + 128) / 256; `red_green` is R - G and `yellow_blue` R + G - 2 B.
struct CellSums {
  std::int32_t luma, luma_squares, red_green, red_green_squares, yellow_blue, yellow_blue_squares;
  std::int32_t clipped;  // samples whose largest channel is
  std::int32_t across, along, lagged;  // squares of the differences of neighbours, and of pixels LAG apart in a line
  std::int32_t at_grid, between;  // differences in a line, where JPEG's grid crosses it and half-way
  std::int32_t median;  // of |a - b - c + d| of 2 x 2 pixels: the 33rd smallest of 64, at most 255
};

QCHECK_ANYWHERE inline std::int32_t luma_of(std::int32_t red, std::int32_t green, std::int32_t blue) {
  return (77 * red + 150 * green + 29 * blue + 128) >> 8;
}

/// The STATISTICS of a cell: see qcheck/survey.py. In doubles, each operation rounded once.
QCHECK_ANYWHERE inline void describe(const CellSums& sums, float* out) {
  const double n = SAMPLES;
  const auto scatter = [n](double sum, double squares) { return n * squares - sum * sum; };  // n^2 times the variance
  const double lines = SURVEY_LINES, steps = lines * (CELL - 1), lags = lines * (CELL - LAG);
  const double across = sums.across / steps, lagged = sums.lagged / lags;
  const double at_grid = sums.at_grid / (lines * (CELL / GRID - 1)), between = sums.between / (lines * (CELL / GRID));
  const double chroma = scatter(sums.red_green, sums.red_green_squares) +
                        scatter(sums.yellow_blue, sums.yellow_blue_squares) / 4;
  out[0] = static_cast<float>(sums.luma / n);
  out[1] = static_cast<float>(std::sqrt(scatter(sums.luma, sums.luma_squares)) / n);
  out[2] = static_cast<float>(across + sums.along / (n / 2));
  out[3] = static_cast<float>(sums.median / 2.0 / 0.6745);
  out[4] = static_cast<float>((at_grid - between) / (at_grid + between + 1));
  out[5] = static_cast<float>(sums.clipped / n);
  out[6] = static_cast<float>(std::sqrt(chroma) / n);
  out[7] = static_cast<float>(across / (lagged + 1));
}

QCHECK_ANYWHERE constexpr int cells_along(int pixels) { return (pixels + CELL - 1) / CELL; }

/// Fills row `row` of the map of the whole image, `out` [cells_along(height), cells_along(width), STATISTICS].
void survey_row(const Passes& passes, const Image& image, int row, float* out);

}  // namespace qcheck
