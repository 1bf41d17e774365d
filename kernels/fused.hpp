// The tile kernel for devices that run blocks of threads over shared memory: one block makes a small rectangle of a
// tile, both passes, without anything between them in the device's memory. Written over an abstract block, so that a
// CPU can run the very same lines (parity/parity.cpp); tiles_cuda.cu runs them on a GPU.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "anywhere.hpp"
#include "coefficients.hpp"
#include "tiles.hpp"

namespace qcheck::fused {

constexpr int THREADS = 256;
constexpr int OUT_WIDTH = 32, OUT_HEIGHT = 16;  // of a block
constexpr int LINE = OUT_WIDTH * CHANNELS;
constexpr int VALUES = LINE * OUT_HEIGHT;
constexpr int MINE = VALUES / THREADS;  // values of a thread
constexpr int ROWS = 16;                // of source in shared memory at once
constexpr int COLUMNS = 256;
constexpr int VECTOR = 16;  // bytes that are read at once
constexpr int VECTORS = (COLUMNS * CHANNELS + VECTOR - 1) / VECTOR + 1;  // of a row, wherever it begins
constexpr int PITCH = VECTORS * VECTOR;
static_assert(VALUES % THREADS == 0 && ROWS == OUT_HEIGHT);

/// An Axis on the device. Where the sizes are equal it has one tap of weight 1, which changes nothing.
struct Weights {
  int in, out, taps;
  const std::int32_t *first, *weights;  // [out], [out * taps]
};

struct PlacedTile {
  int x, y;  // of the box
  Weights across, along;
  bool along_first;
  std::size_t start;  // of its values in the result
};

/// What all blocks share. `begin`, `end`: the memory of the image, all of it readable.
template <class Value>
struct Job {
  const std::uint8_t *data, *begin, *end;
  std::ptrdiff_t stride;
  const PlacedTile* tiles;
  const int* first_block;  // of each tile, and their number after the last
  const Value* table;
  Layout layout;
  Patches patches;
  Value* out;
};

struct Shared {
  alignas(VECTOR) std::uint8_t source[ROWS * PITCH];
  int shift[ROWS];  // where a row's first byte stands in its first vector
  std::uint8_t middle[VALUES];  // what the first pass made
};

/// A thread's own sums: of the pass that is on, and of the second.
struct Sums {
  std::int32_t part[MINE], whole[MINE];
};

QCHECK_ANYWHERE inline int least(int a, int b) { return a < b ? a : b; }
QCHECK_ANYWHERE inline int most(int a, int b) { return a > b ? a : b; }

QCHECK_ANYWHERE inline std::uint8_t rounded(std::int32_t sum) {
  const std::int32_t value = (sum + (1 << (WEIGHT_BITS - 1))) >> WEIGHT_BITS;
  return static_cast<std::uint8_t>(value < 0 ? 0 : value > 255 ? 255 : value);
}

QCHECK_ANYWHERE inline void copy_vector(std::uint8_t* to, const std::uint8_t* from, const std::uint8_t* begin,
                                        const std::uint8_t* end) {
  if (from >= begin && end - from >= VECTOR) {
#if defined(__CUDA_ARCH__)
    *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);
#else
    std::memcpy(to, from, VECTOR);
#endif
    return;
  }
  for (int i = 0; i < VECTOR; ++i)  // at the image's very ends
    if (from + i >= begin && from + i < end) to[i] = from[i];
}

/// One block's work. `Block` has `each(f)`, which calls f(thread, sums) for every thread and then waits for all of them.
template <class Value, class Block>
class Renderer {
 public:
  QCHECK_ANYWHERE Renderer(const Job<Value>& job, int block_index, Shared& shared, Block& block)
      : job_(job), shared_(shared), block_(block), tile_(tile_of(job, block_index)) {
    const int columns = (tile_.across.out + OUT_WIDTH - 1) / OUT_WIDTH;
    x_ = block_index % columns * OUT_WIDTH;
    y_ = block_index / columns * OUT_HEIGHT;
    width_ = least(OUT_WIDTH, tile_.across.out - x_);
    height_ = least(OUT_HEIGHT, tile_.along.out - y_);
    column_begin_ = tile_.across.first[x_];
    column_end_ = least(tile_.across.in, tile_.across.first[x_ + width_ - 1] + tile_.across.taps);
    row_begin_ = tile_.along.first[y_];
    row_end_ = least(tile_.along.in, tile_.along.first[y_ + height_ - 1] + tile_.along.taps);
  }

  QCHECK_ANYWHERE void run() {
    block_.each([](int, Sums& sums) {
      for (int i = 0; i < MINE; ++i) sums.whole[i] = 0;
    });
    tile_.along_first ? along_then_across() : across_then_along();
    write();
  }

 private:
  /// The tile that a block belongs to; `index` becomes the block's place in it.
  QCHECK_ANYWHERE static const PlacedTile& tile_of(const Job<Value>& job, int& index) {
    int tile = 0;
    while (index >= job.first_block[tile + 1]) ++tile;
    index -= job.first_block[tile];
    return job.tiles[tile];
  }

  /// Adds to `sum` what the samples [begin, begin + count) give to output `at` of an axis; `byte(i)`: of sample begin + i.
  template <class Bytes>
  QCHECK_ANYWHERE static void add(std::int32_t& sum, const Weights& axis, int at, int begin, int count, Bytes byte) {
    const int first = axis.first[at], end = least(first + axis.taps, begin + count);
    const auto* weight = axis.weights + static_cast<std::ptrdiff_t>(at) * axis.taps;
    std::int32_t total = sum;
    for (int k = most(first, begin); k < end; ++k) total += byte(k - begin) * weight[k - first];
    sum = total;
  }

  QCHECK_ANYWHERE void across_then_along() {
    for (int row = row_begin_; row < row_end_; row += ROWS) {
      const int rows = least(ROWS, row_end_ - row);
      forget();
      for (int column = column_begin_; column < column_end_; column += COLUMNS) {
        const int columns = least(COLUMNS, column_end_ - column);
        load(row, rows, column, columns);
        block_.each([&](int thread, Sums& sums) {
          for (int i = 0; i < MINE; ++i) {
            const int at = thread + i * THREADS, line = at / LINE, x = at % LINE / CHANNELS, channel = at % CHANNELS;
            if (line >= rows || x >= width_) continue;
            const auto* bytes = shared_.source + line * PITCH + shared_.shift[line] + channel;
            add(sums.part[i], tile_.across, x_ + x, column, columns, [=](int k) { return bytes[k * CHANNELS]; });
          }
        });
      }
      round();
      second(tile_.along, true, row, rows);
    }
  }

  QCHECK_ANYWHERE void along_then_across() {
    for (int column = column_begin_; column < column_end_; column += OUT_WIDTH) {
      const int columns = least(OUT_WIDTH, column_end_ - column);
      forget();
      for (int row = row_begin_; row < row_end_; row += ROWS) {
        const int rows = least(ROWS, row_end_ - row);
        load(row, rows, column, columns);
        block_.each([&](int thread, Sums& sums) {
          for (int i = 0; i < MINE; ++i) {
            const int at = thread + i * THREADS, y = at / LINE, byte_at = at % LINE;
            if (y >= height_ || byte_at >= columns * CHANNELS) continue;
            const Shared& shared = shared_;
            add(sums.part[i], tile_.along, y_ + y, row, rows,
                [&](int k) { return shared.source[k * PITCH + shared.shift[k] + byte_at]; });
          }
        });
      }
      round();
      second(tile_.across, false, column, columns);
    }
  }

  /// The second pass over what the first has made of the samples [begin, begin + count) of its axis: lines of `middle` if
  /// it goes down, pixels of a line if not.
  QCHECK_ANYWHERE void second(const Weights& axis, bool down, int begin, int count) {
    block_.each([&](int thread, Sums& sums) {
      for (int i = 0; i < MINE; ++i) {
        const Place place = place_of(thread, i);
        if (place.x >= width_ || place.y >= height_) continue;
        const auto* bytes = shared_.middle + (down ? place.x * CHANNELS : place.y * LINE) + place.channel;
        const int step = down ? LINE : CHANNELS;
        add(sums.whole[i], axis, down ? y_ + place.y : x_ + place.x, begin, count, [=](int k) { return bytes[k * step]; });
      }
    });
  }

  QCHECK_ANYWHERE void forget() {
    block_.each([](int, Sums& sums) {
      for (int i = 0; i < MINE; ++i) sums.part[i] = 0;
    });
  }

  QCHECK_ANYWHERE void round() {
    block_.each([&](int thread, Sums& sums) {
      for (int i = 0; i < MINE; ++i) shared_.middle[thread + i * THREADS] = rounded(sums.part[i]);
    });
  }

  /// Rows and columns of the box into shared memory, in aligned vectors: neighbouring threads read neighbouring ones.
  QCHECK_ANYWHERE void load(int row, int rows, int column, int columns) {
    block_.each([&](int thread, Sums&) {
      for (int i = thread; i < rows * VECTORS; i += THREADS) {
        const int line = i / VECTORS, vector = i % VECTORS;
        const auto* from = job_.data + (static_cast<std::ptrdiff_t>(tile_.y) + row + line) * job_.stride +
                           static_cast<std::ptrdiff_t>(CHANNELS) * (tile_.x + column);
        const int shift = static_cast<int>(reinterpret_cast<std::uintptr_t>(from) % VECTOR);
        if (vector == 0) shared_.shift[line] = shift;
        if (vector * VECTOR < shift + columns * CHANNELS)
          copy_vector(shared_.source + line * PITCH + vector * VECTOR, from - shift + vector * VECTOR, job_.begin,
                      job_.end);
      }
    });
  }

  struct Place {
    int channel, y, x;
  };
  /// Of a thread's value in the block's rectangle; neighbouring threads have neighbouring x.
  QCHECK_ANYWHERE static Place place_of(int thread, int i) {
    const int at = thread + i * THREADS;
    return {at / (OUT_WIDTH * OUT_HEIGHT), at / OUT_WIDTH % OUT_HEIGHT, at % OUT_WIDTH};
  }

  QCHECK_ANYWHERE void write() {
    block_.each([&](int thread, Sums& sums) {
      for (int i = 0; i < MINE; ++i) {
        const Place place = place_of(thread, i);
        if (place.x >= width_ || place.y >= height_) continue;
        const Value value = job_.table[256 * place.channel + rounded(sums.whole[i])];
        const std::size_t x = x_ + place.x, y = y_ + place.y;
        Value* const out = job_.out + tile_.start;
        if (job_.layout == Layout::planar) {
          out[(static_cast<std::size_t>(place.channel) * tile_.along.out + y) * tile_.across.out + x] = value;
          continue;
        }
        const std::size_t side = job_.patches.side, merge = job_.patches.merge, repeats = job_.patches.repeats;
        const std::size_t row = y / side, column = x / side;
        const std::size_t block = row / merge * (tile_.across.out / side / merge) + column / merge;
        const std::size_t patch = (block * merge + row % merge) * merge + column % merge;
        const std::size_t at = (patch * CHANNELS + place.channel) * repeats;
        for (std::size_t repeat = 0; repeat < repeats; ++repeat)
          out[((at + repeat) * side + y % side) * side + x % side] = value;
      }
    });
  }

  const Job<Value>& job_;
  Shared& shared_;
  Block& block_;
  const PlacedTile& tile_;
  int x_, y_, width_, height_, column_begin_, column_end_, row_begin_, row_end_;
};

}  // namespace qcheck::fused
