// Compiled once a processor, as pairs.inl and quads.inl are.
#include <cstddef>
#include <cstring>

#include "simd.hpp"
#include "survey.hpp"

namespace qcheck {
namespace {

constexpr int WORDS = 8 * LANES;  // pixels of a vector
constexpr int VECTORS = CELL / WORDS;
static_assert(GRID % 8 == 0 && SURVEY_LINES * VECTORS * 510 < 1 << 15, "words hold the sums of a cell, lane by lane");

using Ints4 = std::int32_t __attribute__((vector_size(16)));

/// All bits in the lanes `from`, `from` + `step`, ... below `end`.
inline Words lanes(int from, int step, int end) {
  Words all{};
  for (int i = from; i < end; i += step) all[i] = -1;
  return all;
}

inline Words size_of(Words x) { return x < 0 ? -x : x; }

inline Ints added_up(Words x) { return dot_pairs(x, Words{} + 1); }

/// The sum of LANES lanes.
inline Ints4 folded(Ints x) {
  Ints4 parts[LANES], sum;
  std::memcpy(parts, &x, sizeof x);
  sum = parts[0];
  for (int i = 1; i < LANES; ++i) sum += parts[i];
  return sum;
}

/// The sums of four vectors.
inline Ints4 totals(Ints a, Ints b, Ints c, Ints d) {
  const auto halves = [](Ints4 x, Ints4 y) {
    return QCHECK_SHUFFLE(x, y, 0, 4, 1, 5) + QCHECK_SHUFFLE(x, y, 2, 6, 3, 7);
  };
  const Ints4 ab = halves(folded(a), folded(b)), cd = halves(folded(c), folded(d));
  return QCHECK_SHUFFLE(ab, cd, 0, 1, 4, 5) + QCHECK_SHUFFLE(ab, cd, 2, 3, 6, 7);
}

#if defined(__SSSE3__)
/// Where a channel's bytes are in each of the three vectors that 16 pixels fill.
struct Order {
  __m128i first, second, third;

  static Order red() {
    return {_mm_setr_epi8(0, 3, 6, 9, 12, 15, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1),
            _mm_setr_epi8(-1, -1, -1, -1, -1, -1, 2, 5, 8, 11, 14, -1, -1, -1, -1, -1),
            _mm_setr_epi8(-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 1, 4, 7, 10, 13)};
  }
  static Order green() {
    return {_mm_setr_epi8(1, 4, 7, 10, 13, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1),
            _mm_setr_epi8(-1, -1, -1, -1, -1, 0, 3, 6, 9, 12, 15, -1, -1, -1, -1, -1),
            _mm_setr_epi8(-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 2, 5, 8, 11, 14)};
  }
  static Order blue() {
    return {_mm_setr_epi8(2, 5, 8, 11, 14, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1),
            _mm_setr_epi8(-1, -1, -1, -1, -1, 1, 4, 7, 10, 13, -1, -1, -1, -1, -1, -1),
            _mm_setr_epi8(-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 3, 6, 9, 12, 15)};
  }
};
#endif

/// The channels of a cell's line of packed RGB.
struct Channels {
  static_assert(CELL == 32);
  std::uint8_t red[CELL], green[CELL], blue[CELL];

  void take(const std::uint8_t* pixels) {
#if defined(__AVX2__)
    const auto* from = reinterpret_cast<const __m128i*>(pixels);
    // The first 16 pixels' bytes in one lane and the other 16 pixels' in the other.
    const auto both = [from](int part) {
      const __m256i first = _mm256_castsi128_si256(_mm_loadu_si128(from + part));
      return _mm256_inserti128_si256(first, _mm_loadu_si128(from + CHANNELS + part), 1);
    };
    const __m256i a = both(0), b = both(1), c = both(2);
    const auto gather = [&](std::uint8_t* to, const Order& of) {
      const auto taken = [](__m256i x, __m128i order) {
        return _mm256_shuffle_epi8(x, _mm256_broadcastsi128_si256(order));
      };
      const __m256i of_ab = _mm256_or_si256(taken(a, of.first), taken(b, of.second));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_or_si256(of_ab, taken(c, of.third)));
    };
    gather(red, Order::red());
    gather(green, Order::green());
    gather(blue, Order::blue());
#elif defined(__SSSE3__)
    for (int x = 0; x < CELL; x += 16) {
      const auto* from = reinterpret_cast<const __m128i*>(pixels + CHANNELS * x);
      const __m128i a = _mm_loadu_si128(from), b = _mm_loadu_si128(from + 1), c = _mm_loadu_si128(from + 2);
      const auto gather = [&](std::uint8_t* to, const Order& of) {
        const __m128i of_ab = _mm_or_si128(_mm_shuffle_epi8(a, of.first), _mm_shuffle_epi8(b, of.second));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm_or_si128(of_ab, _mm_shuffle_epi8(c, of.third)));
      };
      gather(red + x, Order::red());
      gather(green + x, Order::green());
      gather(blue + x, Order::blue());
    }
#elif defined(__aarch64__)
    for (int x = 0; x < CELL; x += 16) {
      const uint8x16x3_t all = vld3q_u8(pixels + CHANNELS * x);
      vst1q_u8(red + x, all.val[0]);
      vst1q_u8(green + x, all.val[1]);
      vst1q_u8(blue + x, all.val[2]);
    }
#else
    for (int x = 0; x < CELL; ++x) {
      red[x] = pixels[CHANNELS * x];
      green[x] = pixels[CHANNELS * x + 1];
      blue[x] = pixels[CHANNELS * x + 2];
    }
#endif
  }
};

/// The luma of a cell's line, its last pixel repeated.
struct Luma {
  std::int16_t at[CELL + WORDS];
};

/// CellSums while they are made: a vector each.
class Sums {
 public:
  /// Of each pixel for itself; `luma` is filled on the way.
  void add(const Channels& of, Luma& luma) {
    for (int x = 0; x < CELL; x += WORDS) {
      const auto wide = [x](const std::uint8_t* from) {
        return __builtin_convertvector(load<HalfBytes>(from + x), Words);
      };
      const Words red = wide(of.red), green = wide(of.green), blue = wide(of.blue);
      // 16 bits hold it without a sign: at most 255 * 256 + 128.
      const auto without_sign = [](Words v) { return reinterpret_cast<UnsignedWords>(v); };
      const auto weighted =
          without_sign(red) * red_weight_ + without_sign(green) * green_weight_ + without_sign(blue) * blue_weight_ + 128;
      const Words grey = reinterpret_cast<Words>(weighted >> 8);
      const Words red_green = red - green, yellow_blue = red + green - 2 * blue;
      store(luma.at + x, grey);
      luma_ += grey;
      red_green_ += red_green;
      yellow_blue_ += yellow_blue;
      luma_squares_ = add_pairs(luma_squares_, grey, grey);
      red_green_squares_ = add_pairs(red_green_squares_, red_green, red_green);
      yellow_blue_squares_ = add_pairs(yellow_blue_squares_, yellow_blue, yellow_blue);
    }
    for (int x = 0; x < CELL; x += static_cast<int>(sizeof(HalfBytes))) {
      const auto of_channel = [x](const std::uint8_t* from) { return load<HalfBytes>(from + x); };
      const HalfBytes red = of_channel(of.red), green = of_channel(of.green), blue = of_channel(of.blue);
      const HalfBytes larger = red > green ? red : green, largest = larger > blue ? larger : blue;
      clipped_ -= reinterpret_cast<HalfBytes>((largest <= DARKEST) | (largest >= BRIGHTEST));  // true is -1
    }
    store(luma.at + CELL, luma.at[CELL - 1] - Words{});
  }

  /// Of neighbours, in two lines one below the other. Their diagonal coefficients, CELL / 2 of them, go to `diagonals`.
  void add_neighbours(const Luma& above, const Luma& below, std::uint8_t* diagonals) {
    for (int x = 0; x < CELL; x += WORDS) {
      const Words top = load<Words>(above.at + x), bottom = load<Words>(below.at + x);
      add_across(above, x, top);
      add_across(below, x, bottom);
      const Words down = bottom - top;
      along_ = add_pairs(along_, down, down);
      const Ints difference = dot_pairs(down, signs_), size = difference < 0 ? -difference : difference;
      store(diagonals + x / 2, __builtin_convertvector(clamp_byte(size), Pixels4));
    }
  }

  CellSums all() const {
    const Ints4 sums[] = {
        totals(added_up(luma_), luma_squares_, added_up(red_green_), red_green_squares_),
        totals(added_up(yellow_blue_), yellow_blue_squares_, added_up(__builtin_convertvector(clipped_, Words)), across_),
        totals(along_, lagged_, added_up(steps_ & at_), added_up(steps_ & half_way_)),
    };
    CellSums all;
    static_assert(offsetof(CellSums, yellow_blue) == sizeof(Ints4) && offsetof(CellSums, along) == 2 * sizeof(Ints4) &&
                  offsetof(CellSums, median) == sizeof sums, "as they stand in CellSums");
    std::memcpy(&all, sums, sizeof sums);
    return all;
  }

 private:
  void add_across(const Luma& luma, int x, Words here) {
    const Words step = load<Words>(luma.at + x + 1) - here;
    across_ = add_pairs(across_, step, step);
    steps_ += size_of(step);
    Words lag = load<Words>(luma.at + x + LAG) - here;
    if (x + WORDS == CELL) lag &= inside_;
    lagged_ = add_pairs(lagged_, lag, lag);
  }

  /// A factor that the compiler does not know, because it would replace one product by many shifts.
  static UnsignedWords factor(std::uint16_t value) {
    UnsignedWords all = value - UnsignedWords{};
#if defined(__x86_64__)
    asm("" : "+x"(all));
#elif defined(__aarch64__)
    asm("" : "+w"(all));
#endif
    return all;
  }

  const UnsignedWords red_weight_ = factor(77), green_weight_ = factor(150), blue_weight_ = factor(29);
  const Words at_ = lanes(GRID - 1, GRID, WORDS), half_way_ = lanes(GRID / 2 - 1, GRID, WORDS);
  const Words inside_ = lanes(0, 1, WORDS - LAG);
  const Words signs_ = lanes(0, 2, WORDS) * -2 - 1;  // 1 and -1 in turn
  HalfBytes clipped_{};
  Words luma_{}, red_green_{}, yellow_blue_{}, steps_{};
  Ints luma_squares_{}, red_green_squares_{}, yellow_blue_squares_{}, across_{}, along_{}, lagged_{};
};

/// How many of COEFFICIENTS are smaller than `than`.
inline int smaller(const std::uint8_t* values, std::uint8_t than) {
  constexpr int SIZE = sizeof(Bytes);
  static_assert(COEFFICIENTS % SIZE == 0 && COEFFICIENTS < 256);
  const auto are = [&](int from) { return load<Bytes>(values + from) < than; };
#if defined(__AVX512VNNI__)
  static_assert(COEFFICIENTS == SIZE);
  return __builtin_popcountll(_mm512_movepi8_mask(reinterpret_cast<__m512i>(are(0))));
#elif defined(__AVX2__)
  int count = 0;
  for (int i = 0; i < COEFFICIENTS; i += SIZE)
    count += __builtin_popcount(_mm256_movemask_epi8(reinterpret_cast<__m256i>(are(i))));
  return count;
#else
  Bytes below{};
  for (int i = 0; i < COEFFICIENTS; i += SIZE) below -= reinterpret_cast<Bytes>(are(i));  // true is -1
  std::uint64_t eights[SIZE / 8], sum = 0;
  store(eights, below);
  for (const auto eight : eights) sum += eight;
  return static_cast<int>(sum * 0x0101010101010101 >> 56);  // the product's top byte is the sum of all eight
#endif
}

constexpr int GROUP = 4;  // cells whose medians are found side by side, because each step of one waits for the last

/// The median coefficients of GROUP cells, bit by bit.
inline void find_medians(const std::uint8_t (&values)[GROUP][COEFFICIENTS], CellSums (&sums)[GROUP]) {
  int found[GROUP] = {};
  for (int bit = 128; bit; bit /= 2)
    for (int i = 0; i < GROUP; ++i)
      found[i] += smaller(values[i], static_cast<std::uint8_t>(found[i] + bit)) <= COEFFICIENTS / 2 ? bit : 0;
  for (int i = 0; i < GROUP; ++i) sums[i].median = found[i];
}

/// All of a cell but its median: its sums, and its coefficients. Its first `there` pixels a line are in the photo.
inline CellSums summed(const std::uint8_t* const* lines, std::ptrdiff_t at, int there, std::uint8_t* diagonals) {
  // Each step for all lines before the next: what was just stored is slow to load again in other pieces.
  Channels channels[SURVEY_LINES];
  for (int i = 0; i < SURVEY_LINES; ++i) {
    const std::uint8_t* pixels = lines[i] + at;
    std::uint8_t whole[CHANNELS * CELL];
    if (there < CELL) {
      std::memcpy(whole, pixels, static_cast<std::size_t>(CHANNELS) * there);
      for (int j = there; j < CELL; ++j) std::memcpy(whole + CHANNELS * j, pixels + CHANNELS * (there - 1), CHANNELS);
      pixels = whole;
    }
    channels[i].take(pixels);
  }
  Sums sums;
  Luma luma[SURVEY_LINES];
  for (int i = 0; i < SURVEY_LINES; ++i) sums.add(channels[i], luma[i]);
  for (int i = 0; i < SURVEY_LINES; i += 2) sums.add_neighbours(luma[i], luma[i + 1], diagonals + i / 2 * CELL / 2);
  return sums.all();
}

void survey(const std::uint8_t* const* lines, int width, float* out) {
  std::uint8_t diagonals[GROUP][COEFFICIENTS] = {};
  CellSums sums[GROUP] = {};
  for (int x = 0; x < width;) {
    int cells = 0;
    for (; cells < GROUP && x < width; ++cells, x += CELL) {
      const int there = width - x < CELL ? width - x : CELL;
      sums[cells] = summed(lines, static_cast<std::ptrdiff_t>(CHANNELS) * x, there, diagonals[cells]);
    }
    find_medians(diagonals, sums);
    for (int i = 0; i < cells; ++i, out += STATISTICS) describe(sums[i], out);
  }
}

}  // namespace
}  // namespace qcheck
