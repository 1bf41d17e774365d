#include "tiles.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>

#include "coefficients.hpp"
#include "passes.hpp"
#include "survey.hpp"

namespace qcheck {
namespace {

/// A tile's lines, ready to read with SLACK to spare.
class Lines {
 public:
  Lines(const Image& image, const Tile& tile) : image_(image), tile_(tile) {
    const auto last = image.stride < 0 ? 0 : image.height - 1;
    end_ = image.data + last * image.stride + static_cast<std::ptrdiff_t>(CHANNELS) * image.width;
  }
  /// Line `y` of the tile; where reading on would leave the image's memory, a copy of it in `spare`.
  const std::uint8_t* at(int y, std::vector<std::uint8_t>& spare) const {
    const auto* line = image_.data + (tile_.y + y) * image_.stride + static_cast<std::ptrdiff_t>(CHANNELS) * tile_.x;
    const std::size_t bytes = static_cast<std::size_t>(CHANNELS) * tile_.width;
    if (line + bytes + SLACK <= end_) return line;
    spare.resize(bytes + SLACK);
    std::memcpy(spare.data(), line, bytes);
    return spare.data();
  }

 private:
  const Image& image_;
  const Tile& tile_;
  const std::uint8_t* end_;
};

struct Plan {
  Plan(const Tile& tile, Packing packing)
      : x(bicubic_axis(tile.width, tile.out_width)),
        y(bicubic_axis(tile.height, tile.out_height)),
        across(x, packing),
        along(y, packing),
        along_first(along_goes_first(tile)) {}
  Axis x, y;
  Weights across, along;
  bool along_first;
};

/// Takes a tile's finished lines of bytes, from one on, and puts them where they belong, as values.
template <class Value>
class Writer {
 public:
  Writer(const Tile& tile, const Value* table, Layout layout, const Patches& patches, Value* out, int begin)
      : tile_(tile),
        table_(table),
        planar_(layout == Layout::planar),
        patches_(patches),
        out_(out),
        // Patches are written whole: a line of one is shorter than what the processor moves at once.
        most_(planar_ ? 1 : patches.side),
        pitch_(static_cast<std::size_t>(CHANNELS) * tile.out_width + SLACK),
        lines_(most_ * pitch_),
        begin_(begin),
        end_(begin) {}

  /// Where the next line goes, and SLACK bytes more.
  std::uint8_t* next() { return lines_.data() + (end_ - begin_) * pitch_; }
  void next_is_done() {
    if (++end_ % most_ == 0) flush();
  }
  void add(const std::uint8_t* line) {
    std::memcpy(next(), line, static_cast<std::size_t>(CHANNELS) * tile_.out_width);
    next_is_done();
  }
  void flush() {
    if (end_ > begin_) planar_ ? planar() : patched();
    begin_ = end_;
  }

 private:
  void planar() const {
    const std::size_t width = tile_.out_width, plane = width * tile_.out_height;
    Value* const row = out_ + begin_ * width;
    const Value *red = table_, *green = table_ + 256, *blue = table_ + 512;
    const std::uint8_t* bytes = lines_.data();
    for (std::size_t x = 0; x < width; ++x, bytes += CHANNELS) {
      row[x] = red[bytes[0]];
      row[plane + x] = green[bytes[1]];
      row[2 * plane + x] = blue[bytes[2]];
    }
  }

  void patched() const {
    const int side = patches_.side, merge = patches_.merge, columns = tile_.out_width / side;
    const std::size_t square = static_cast<std::size_t>(side) * side, one = square * patches_.repeats;
    const int row = begin_ / side, first = begin_ % side, count = end_ - begin_;
    for (int column = 0; column < columns; ++column) {
      const std::size_t block = static_cast<std::size_t>(row / merge) * (columns / merge) + column / merge;
      const std::size_t patch = (block * merge + row % merge) * merge + column % merge;
      Value* const to = out_ + patch * CHANNELS * one + static_cast<std::size_t>(first) * side;
      for (int y = 0; y < count; ++y) {
        const std::uint8_t* bytes = lines_.data() + y * pitch_ + static_cast<std::size_t>(CHANNELS) * side * column;
        Value* const line = to + static_cast<std::size_t>(y) * side;
        for (int x = 0; x < side; ++x, bytes += CHANNELS) {
          line[x] = table_[bytes[0]];
          line[one + x] = table_[256 + bytes[1]];
          line[2 * one + x] = table_[512 + bytes[2]];
        }
      }
      for (int channel = 0; channel < CHANNELS; ++channel)
        for (int repeat = 1; repeat < patches_.repeats; ++repeat)
          std::memcpy(to + channel * one + repeat * square, to + channel * one, count * side * sizeof(Value));
    }
  }

  const Tile& tile_;
  const Value* table_;
  bool planar_;
  const Patches& patches_;
  Value* out_;
  int most_;
  std::size_t pitch_;
  std::vector<std::uint8_t> lines_;  // [most_ * pitch_]
  int begin_, end_;                  // of the lines held
};

/// Rows of the survey that a band makes on its way, while the lines they need are still in the processor's cache.
class Surveyor {
 public:
  /// Of the rows whose last line is one of [begin, end).
  Surveyor(const Passes& passes, const Image& image, float* map, int begin, int end)
      : passes_(passes), image_(image), map_(map), next_(map ? rows_before(begin) : 0), end_(map ? rows_before(end) : 0) {}
  /// Makes those whose lines have all been read, when `ready` lines have.
  void advance(int ready) {
    for (; next_ < end_ && std::min((next_ + 1) * CELL, image_.height) <= ready; ++next_)
      survey_row(passes_, image_, next_, map_);
  }

 private:
  /// How many rows end before a line.
  int rows_before(int line) const { return line >= image_.height ? cells_along(image_.height) : line / CELL; }

  const Passes& passes_;
  const Image& image_;
  float* map_;
  int next_, end_;
};

/// Lines [begin, end) of a tile. Lines that passed across wait in a ring until those that passed along have used them.
template <class Value>
void band(const Passes& passes, const Image& image, const Tile& tile, const Plan& plan, Writer<Value>& writer,
          int begin, int end, Surveyor& surveyor) {
  const Lines lines(image, tile);
  const std::size_t bytes = static_cast<std::size_t>(CHANNELS) * tile.out_width, pitch = bytes + SLACK;
  const int taps = plan.y.identity ? 1 : plan.y.taps, ring = taps + passes.rows;
  std::vector<std::uint8_t> held(ring * pitch);
  std::vector<std::vector<std::uint8_t>> spares(ring);
  std::vector<const std::uint8_t*> narrow(ring), used(taps);
  const auto needed = [&](int y) { return plan.y.identity ? y + 1 : plan.y.first[y] + plan.y.count[y]; };
  int ready = plan.y.identity ? begin : plan.y.first[begin];
  for (int y = begin; y < end; ++y) {
    while (ready < needed(y)) {
      const std::uint8_t* from[MOST_ROWS];
      std::uint8_t* to[MOST_ROWS];
      if (plan.x.identity) {
        narrow[ready % ring] = lines.at(ready, spares[ready % ring]);
        ++ready;
        continue;
      }
      const int count = std::min(passes.rows, tile.height - ready);
      for (int i = 0; i < passes.rows; ++i) {
        const int slot = (ready + i) % ring;
        from[i] = i < count ? lines.at(ready + i, spares[slot]) : from[0];
        to[i] = held.data() + slot * pitch;
        narrow[slot] = to[i];
      }
      passes.horizontal(from, plan.x, plan.across, to);
      ready += count;
      surveyor.advance(ready);
    }
    if (plan.y.identity) {
      writer.add(narrow[y % ring]);
      continue;
    }
    for (int tap = 0; tap < taps; ++tap) {
      // What lies beyond the last line that counts has no weight: any line will do.
      const int line = plan.y.first[y] + std::min(tap, plan.y.count[y] - 1);
      used[tap] = narrow[line % ring];
    }
    passes.vertical(used.data(), taps, plan.along.of(y), bytes, writer.next());
    writer.next_is_done();
  }
}

/// The same where the height shrinks first.
template <class Value>
void tall_band(const Passes& passes, const Image& image, const Tile& tile, const Plan& plan,
               Writer<Value>& writer, int begin, int end, Surveyor& surveyor) {
  const Lines lines(image, tile);
  const std::size_t bytes = static_cast<std::size_t>(CHANNELS) * tile.width;
  const std::size_t in_pitch = bytes + SLACK, out_pitch = static_cast<std::size_t>(CHANNELS) * tile.out_width + SLACK;
  const int taps = plan.y.taps;
  std::vector<std::uint8_t> shrunk(passes.rows * in_pitch), done(passes.rows * out_pitch);
  std::vector<std::vector<std::uint8_t>> spares(taps);
  std::vector<const std::uint8_t*> used(taps);
  for (int y = begin; y < end; y += passes.rows) {
    const std::uint8_t* from[MOST_ROWS];
    std::uint8_t* to[MOST_ROWS];
    for (int i = 0; i < passes.rows; ++i) {
      from[i] = shrunk.data() + i * in_pitch;
      to[i] = done.data() + i * out_pitch;
      if (y + i >= end) continue;
      for (int tap = 0; tap < taps; ++tap)
        used[tap] = lines.at(plan.y.first[y + i] + std::min(tap, plan.y.count[y + i] - 1), spares[tap]);
      passes.vertical(used.data(), taps, plan.along.of(y + i), bytes, shrunk.data() + i * in_pitch);
    }
    passes.horizontal(from, plan.x, plan.across, to);
    for (int i = 0; i < passes.rows && y + i < end; ++i) {
      writer.add(to[i]);
      surveyor.advance(plan.y.first[y + i] + plan.y.count[y + i]);
    }
  }
}

}  // namespace

bool along_goes_first(const Tile& tile) {
  return tile.width != tile.out_width && tile.out_height < tile.height &&
         tile.height - tile.out_height > 2 * (static_cast<long>(tile.width) - tile.out_width);
}

template <class Value>
void render(const Passes& passes, const Image& image, const std::vector<Tile>& tiles, const Value* table,
            Layout layout, const Patches& patches, Value* const* out, int threads, float* survey) {
  struct Task {
    std::size_t tile;
    int begin, end;
    int survey_begin, survey_end;  // lines of the image
  };
  std::vector<Plan> plans;
  for (const Tile& tile : tiles) plans.emplace_back(tile, passes.packing);
  // A tile of the whole image is made with the survey, if there is one; else each row of it is a task of its own.
  std::size_t surveyed = tiles.size();
  for (std::size_t i = tiles.size(); survey && i-- > 0;)
    if (tiles[i].width == image.width && tiles[i].height == image.height) surveyed = i;
  std::vector<Task> tasks;
  for (std::size_t i = 0; i < tiles.size(); ++i) {
    // At the seam of two bands the lines they share pass across twice, so there are no more bands than threads.
    const int bands = std::max(1, std::min(threads, tiles[i].out_height / 32));
    const auto line = [&](int b) { return static_cast<int>(static_cast<std::int64_t>(image.height) * b / bands); };
    for (int b = 0; b < bands; ++b)
      tasks.push_back({i, tiles[i].out_height * b / bands, tiles[i].out_height * (b + 1) / bands,
                       i == surveyed ? line(b) : 0, i == surveyed ? line(b + 1) : 0});
  }
  if (survey && surveyed == tiles.size())
    for (int line = 0; line < image.height; line += CELL)
      tasks.push_back({surveyed, 0, 0, line, std::min(line + CELL, image.height)});
  std::atomic<std::size_t> next{0};
  std::exception_ptr failure;
  std::mutex failing;
  const auto work = [&]() noexcept {
    try {
      for (std::size_t at; (at = next++) < tasks.size();) {
        const Task& task = tasks[at];
        Surveyor surveyor(passes, image, survey, task.survey_begin, task.survey_end);
        if (task.tile == tiles.size()) {
          surveyor.advance(image.height);
          continue;
        }
        const Tile& tile = tiles[task.tile];
        const Plan& plan = plans[task.tile];
        Writer<Value> writer(tile, table, layout, patches, out[task.tile], task.begin);
        (plan.along_first ? tall_band<Value> : band<Value>)(passes, image, tile, plan, writer, task.begin, task.end,
                                                                surveyor);
        writer.flush();
        surveyor.advance(image.height);  // what is left: rows that the next band reads first
      }
    } catch (...) {  // out of memory
      const std::lock_guard<std::mutex> lock(failing);
      failure = std::current_exception();
    }
  };
  std::vector<std::thread> others;
  try {
    const int useful = static_cast<int>(std::min<std::size_t>(threads, tasks.size()));
    others.reserve(useful);
    for (int i = 1; i < useful; ++i) others.emplace_back(work);
  } catch (const std::system_error&) {
    // The system gives no more threads: those there are do all of it.
  }
  work();
  for (auto& other : others) other.join();
  if (failure) std::rethrow_exception(failure);
}

template void render<float>(const Passes&, const Image&, const std::vector<Tile>&, const float*, Layout,
                            const Patches&, float* const*, int, float*);
template void render<std::uint16_t>(const Passes&, const Image&, const std::vector<Tile>&, const std::uint16_t*,
                                    Layout, const Patches&, std::uint16_t* const*, int, float*);

}  // namespace qcheck
