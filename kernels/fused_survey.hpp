// The survey for devices that run blocks of threads over shared memory, in the manner of fused.hpp: a block describes
// CELLS neighbouring cells of a row, a thread takes one column of pixels.
#pragma once
#include "fused.hpp"
#include "survey.hpp"

namespace qcheck::fused {

constexpr int CELLS = THREADS / CELL;
constexpr int COUNTED = 12;  // of the numbers of CellSums: all but the median
static_assert(sizeof(CellSums) == (COUNTED + 1) * sizeof(std::int32_t));

struct SurveyJob {
  const std::uint8_t* data;
  std::ptrdiff_t stride;
  int width, height;
  float* map;
};

inline int survey_blocks(const SurveyJob& job) {
  return cells_along(job.height) * ((cells_along(job.width) + CELLS - 1) / CELLS);
}

struct SurveyShared {
  std::int16_t luma[SURVEY_LINES][THREADS];
  std::int32_t parts[COUNTED][THREADS];
  std::uint8_t diagonals[CELLS][COEFFICIENTS];
  CellSums sums[CELLS];
};

/// One block's work; `Block` as in fused.hpp, whose threads need no numbers of their own here.
template <class Block>
class SurveyBlock {
 public:
  QCHECK_ANYWHERE SurveyBlock(const SurveyJob& job, int block_index, SurveyShared& shared, Block& block)
      : job_(job), shared_(shared), block_(block), columns_(cells_along(job.width)) {
    const int blocks = (columns_ + CELLS - 1) / CELLS;
    row_ = block_index / blocks;
    first_ = block_index % blocks * CELLS;
  }

  QCHECK_ANYWHERE void run() {
    block_.each([this](int thread) { read(thread); });
    block_.each([this](int thread) { compare(thread); });
    block_.each([this](int thread) { add_up(thread); });
    block_.each([this](int thread) {
      if (thread < CELLS && first_ + thread < columns_)
        describe(shared_.sums[thread],
                 job_.map + (static_cast<std::size_t>(row_) * columns_ + first_ + thread) * STATISTICS);
    });
  }

 private:
  /// A column of pixels, and what it tells by itself.
  QCHECK_ANYWHERE void read(int thread) {
    const int x = least(first_ * CELL + thread, job_.width - 1);
    std::int32_t parts[COUNTED] = {};
    for (int line = 0; line < SURVEY_LINES; ++line) {
      const int y = least(row_ * CELL + survey_line(line), job_.height - 1);
      const auto* pixel = job_.data + y * job_.stride + static_cast<std::ptrdiff_t>(CHANNELS) * x;
      const std::int32_t red = pixel[0], green = pixel[1], blue = pixel[2], luma = luma_of(red, green, blue);
      const std::int32_t red_green = red - green, yellow_blue = red + green - 2 * blue;
      const int largest = most(red, most(green, blue));
      shared_.luma[line][thread] = static_cast<std::int16_t>(luma);
      parts[0] += luma;
      parts[1] += luma * luma;
      parts[2] += red_green;
      parts[3] += red_green * red_green;
      parts[4] += yellow_blue;
      parts[5] += yellow_blue * yellow_blue;
      parts[6] += largest <= DARKEST || largest >= BRIGHTEST;
    }
    for (int i = 0; i < COUNTED; ++i) shared_.parts[i][thread] = parts[i];
  }

  /// The column against those to its right, and each line against the one below it.
  QCHECK_ANYWHERE void compare(int thread) {
    const int x = thread % CELL;
    std::int32_t across = 0, along = 0, lagged = 0, steps = 0;
    for (int line = 0; line < SURVEY_LINES; ++line) {
      const std::int16_t* luma = shared_.luma[line] + thread;
      if (x < CELL - 1) {
        const std::int32_t step = luma[1] - luma[0];
        across += step * step;
        steps += step < 0 ? -step : step;
      }
      if (x < CELL - LAG) lagged += (luma[LAG] - luma[0]) * (luma[LAG] - luma[0]);
      if (line % 2) continue;
      const std::int16_t* below = shared_.luma[line + 1] + thread;
      along += (below[0] - luma[0]) * (below[0] - luma[0]);
      if (x % 2) continue;
      const std::int32_t difference = below[0] - luma[0] - below[1] + luma[1];
      shared_.diagonals[thread / CELL][(line * CELL / 2 + x) / 2] =
          static_cast<std::uint8_t>(least(255, difference < 0 ? -difference : difference));
    }
    shared_.parts[7][thread] = across;
    shared_.parts[8][thread] = along;
    shared_.parts[9][thread] = lagged;
    shared_.parts[10][thread] = x % GRID == GRID - 1 ? steps : 0;
    shared_.parts[11][thread] = x % GRID == GRID / 2 - 1 ? steps : 0;
  }

  QCHECK_ANYWHERE void add_up(int thread) {
    if (thread < CELLS * COUNTED) {
      const int cell = thread / COUNTED, part = thread % COUNTED;
      std::int32_t sum = 0;
      for (int i = 0; i < CELL; ++i) sum += shared_.parts[part][cell * CELL + i];
      reinterpret_cast<std::int32_t*>(&shared_.sums[cell])[part] = sum;
    }
    for (int i = thread; i < CELLS * COEFFICIENTS; i += THREADS) {
      const std::uint8_t* all = shared_.diagonals[i / COEFFICIENTS];
      const int mine = i % COEFFICIENTS;
      int rank = 0;  // equal ones stand in their own order
      for (int j = 0; j < COEFFICIENTS; ++j) rank += all[j] < all[mine] || (all[j] == all[mine] && j < mine);
      if (rank == COEFFICIENTS / 2) shared_.sums[i / COEFFICIENTS].median = all[mine];
    }
  }

  const SurveyJob& job_;
  SurveyShared& shared_;
  Block& block_;
  int columns_, row_, first_;
};

}  // namespace qcheck::fused
