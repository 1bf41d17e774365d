// Compiled once a processor, as passes.inl is.
#include <cstring>

#include "simd.hpp"
#include "survey.hpp"

namespace qcheck {
namespace {

constexpr int WORDS = 8 * LANES;  // pixels of a vector
constexpr int VECTORS = CELL / WORDS;
static_assert(GRID % 8 == 0 && SURVEY_LINES * VECTORS * 510 < 1 << 15, "words hold the sums of a cell, lane by lane");

/// 1 in every GRID-th lane from `first` on.
inline Words every_block(int first) {
  Words ones{};
  for (int i = first; i < WORDS; i += GRID) ones[i] = 1;
  return ones;
}

inline Words size_of(Words x) { return x < 0 ? -x : x; }

inline std::int32_t total(Ints x) {
  std::int32_t sum = 0;
  for (int i = 0; i < 4 * LANES; ++i) sum += x[i];
  return sum;
}

inline std::int32_t total(Words x) { return total(dot_pairs(x, Words{} + 1)); }

/// A line of a cell taken apart, its luma with the last pixel repeated.
struct Line {
  std::int16_t luma[CELL + WORDS], red_green[CELL], yellow_blue[CELL], largest[CELL];

  explicit Line(const std::uint8_t* pixels) {
    for (int x = 0; x < CELL; ++x) {
      const std::int16_t red = pixels[CHANNELS * x], green = pixels[CHANNELS * x + 1], blue = pixels[CHANNELS * x + 2];
      // 16 bits hold it without a sign: at most 255 * 256 + 128.
      luma[x] = static_cast<std::int16_t>(static_cast<std::uint16_t>(77 * red + 150 * green + 29 * blue + 128) >> 8);
      red_green[x] = static_cast<std::int16_t>(red - green);
      yellow_blue[x] = static_cast<std::int16_t>(red + green - 2 * blue);
      const std::int16_t larger = red > green ? red : green;
      largest[x] = larger > blue ? larger : blue;
    }
    for (int x = CELL; x < CELL + WORDS; ++x) luma[x] = luma[CELL - 1];
  }
};

/// CellSums while they are made: a vector each.
class Sums {
 public:
  void add(const Line& line) {
    for (int x = 0; x < CELL; x += WORDS) {
      const Words luma = load<Words>(line.luma + x), red_green = load<Words>(line.red_green + x);
      const Words yellow_blue = load<Words>(line.yellow_blue + x), largest = load<Words>(line.largest + x);
      luma_ += luma;
      red_green_ += red_green;
      yellow_blue_ += yellow_blue;
      clipped_ -= (largest <= DARKEST) | (largest >= BRIGHTEST);  // true is -1
      luma_squares_ += dot_pairs(luma, luma);
      red_green_squares_ += dot_pairs(red_green, red_green);
      yellow_blue_squares_ += dot_pairs(yellow_blue, yellow_blue);
      const Words step = load<Words>(line.luma + x + 1) - luma, size = size_of(step);
      across_ += dot_pairs(step, step);
      at_grid_ += size * at_;
      between_ += size * half_way_;
      Words lag = load<Words>(line.luma + x + LAG) - luma;
      if (x + WORDS == CELL) lag &= inside_;
      lagged_ += dot_pairs(lag, lag);
    }
  }

  /// Two lines, one below the other; their diagonal coefficients, CELL / 2 of them, go to `diagonals`.
  void add_pair(const Line& above, const Line& below, std::uint8_t* diagonals) {
    for (int x = 0; x < CELL; x += WORDS) {
      const Words down = load<Words>(below.luma + x) - load<Words>(above.luma + x);
      along_ += dot_pairs(down, down);
      const Ints difference = dot_pairs(down, signs_), size = difference < 0 ? -difference : difference;
      store(diagonals + x / 2, __builtin_convertvector(clamp_byte(size), Pixels4));
    }
  }

  CellSums all() const {
    CellSums sums{};
    sums.luma = total(luma_);
    sums.luma_squares = total(luma_squares_);
    sums.red_green = total(red_green_);
    sums.red_green_squares = total(red_green_squares_);
    sums.yellow_blue = total(yellow_blue_);
    sums.yellow_blue_squares = total(yellow_blue_squares_);
    sums.clipped = total(clipped_);
    sums.across = total(across_);
    sums.along = total(along_);
    sums.lagged = total(lagged_);
    sums.at_grid = total(at_grid_);
    sums.between = total(between_);
    return sums;
  }

 private:
  /// -1 in all lanes but the last LAG.
  static Words all_but_lag() {
    Words lanes{};
    for (int i = 0; i < WORDS - LAG; ++i) lanes[i] = -1;
    return lanes;
  }
  static Words alternating() {
    Words lanes{};
    for (int i = 0; i < WORDS; ++i) lanes[i] = i % 2 ? -1 : 1;
    return lanes;
  }

  const Words at_ = every_block(GRID - 1), half_way_ = every_block(GRID / 2 - 1), inside_ = all_but_lag();
  const Words signs_ = alternating();
  Words luma_{}, red_green_{}, yellow_blue_{}, clipped_{}, at_grid_{}, between_{};
  Ints luma_squares_{}, red_green_squares_{}, yellow_blue_squares_{}, across_{}, along_{}, lagged_{};
};

/// The value of rank `rank` (from 0) of COEFFICIENTS, by halving.
inline int ranked(const std::uint8_t* values, int rank) {
  constexpr int SIZE = sizeof(Bytes);
  static_assert(COEFFICIENTS % SIZE == 0 && COEFFICIENTS < 256);
  int least = 0, most = 255;
  while (least < most) {
    const auto middle = static_cast<std::uint8_t>((least + most) / 2);
    Bytes below{};
    for (int i = 0; i < COEFFICIENTS; i += SIZE)
      below -= reinterpret_cast<Bytes>(load<Bytes>(values + i) <= middle);  // true is -1
    std::uint64_t eights[SIZE / 8], sum = 0;
    store(eights, below);
    for (const auto eight : eights) sum += eight;
    // The product's top byte is the sum of all eight.
    if (static_cast<int>(sum * 0x0101010101010101 >> 56) > rank)
      most = middle;
    else
      least = middle + 1;
  }
  return least;
}

void survey(const std::uint8_t* const* lines, int width, float* out) {
  for (int x = 0; x < width; x += CELL, out += STATISTICS) {
    std::uint8_t diagonals[COEFFICIENTS];
    Sums sums;
    for (int i = 0; i < SURVEY_LINES; i += 2) {
      const auto line = [&](int at) {
        const std::uint8_t* pixels = lines[at] + static_cast<std::ptrdiff_t>(CHANNELS) * x;
        const int there = width - x;
        if (there >= CELL) return Line(pixels);
        std::uint8_t whole[CHANNELS * CELL];
        std::memcpy(whole, pixels, static_cast<std::size_t>(CHANNELS) * there);
        for (int j = there; j < CELL; ++j) std::memcpy(whole + CHANNELS * j, pixels + CHANNELS * (there - 1), CHANNELS);
        return Line(whole);
      };
      const Line above = line(i), below = line(i + 1);
      sums.add(above);
      sums.add(below);
      sums.add_pair(above, below, diagonals + i / 2 * CELL / 2);
    }
    CellSums all = sums.all();
    all.median = ranked(diagonals, COEFFICIENTS / 2);
    describe(all, out);
  }
}

}  // namespace
}  // namespace qcheck
