// The passes for processors that multiply 16-bit words; compiled once for each, see simd.hpp.
#include "passes.hpp"
#include "simd.hpp"

namespace qcheck {
namespace {

static_assert(LANES <= MOST_ROWS);
constexpr Packing PACKING = Packing::pairs;

/// All sums wrap around; the total fits, and so it is exact.
inline Ints rounded(Ints high, Ints low, std::int32_t begin) {
  const auto sum = (reinterpret_cast<Unsigned>(high) << LOW_BITS) + reinterpret_cast<Unsigned>(low) +
                   reinterpret_cast<Unsigned>(splat(begin));
  return clamp_byte(reinterpret_cast<Ints>(sum) >> WEIGHT_BITS);
}

// Sixteen bytes are r0 g0 b0 r1 g1 b1 r2 ... ; as words in pairs of one channel they are r0 r1 g0 g1 b0 b1 and two that
// nobody reads, and the same of pixels 2 and 3.
#if defined(__AVX2__)
inline Words first_pair(Bytes x) {
  const auto order = _mm256_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1,  //
                                      0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1);
  return reinterpret_cast<Words>(_mm256_shuffle_epi8(reinterpret_cast<__m256i>(x), order));
}
inline Words second_pair(Bytes x) {
  const auto order = _mm256_setr_epi8(6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1,  //
                                      6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1);
  return reinterpret_cast<Words>(_mm256_shuffle_epi8(reinterpret_cast<__m256i>(x), order));
}
#else
inline Words first_pair(Bytes x) {
  return reinterpret_cast<Words>(
      QCHECK_SHUFFLE(x, Bytes{}, 0, 16, 3, 16, 1, 16, 4, 16, 2, 16, 5, 16, 16, 16, 16, 16));
}
inline Words second_pair(Bytes x) {
  return reinterpret_cast<Words>(
      QCHECK_SHUFFLE(x, Bytes{}, 6, 16, 9, 16, 7, 16, 10, 16, 8, 16, 11, 16, 16, 16, 16, 16));
}
#endif

void horizontal(const std::uint8_t* const* lines, const Axis& axis, const Weights& weights, std::uint8_t* const* out) {
  const int steps = axis.taps / TAP_STEP;
  const std::int32_t* word = weights.words.data();
  const std::int32_t* first = axis.first.data();
  for (int x = 0; x < axis.out; ++x) {
    Ints high{}, low{};
    const std::int32_t begin = *word++;
    std::size_t at = static_cast<std::size_t>(CHANNELS) * first[x];
    for (int step = 0; step < steps; ++step, word += 4, at += TAP_STEP * CHANNELS) {
      const Bytes bytes = load_lines(lines, at);
      const Words a = first_pair(bytes), b = second_pair(bytes);
      high += dot_pairs(a, reinterpret_cast<Words>(splat(word[0])));
      low += dot_pairs(a, reinterpret_cast<Words>(splat(word[1])));
      high += dot_pairs(b, reinterpret_cast<Words>(splat(word[2])));
      low += dot_pairs(b, reinterpret_cast<Words>(splat(word[3])));
    }
    store_pixel(rounded(high, low, begin), out, static_cast<std::size_t>(CHANNELS) * x);
  }
}

#if defined(__AVX2__)
#define QCHECK_LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define QCHECK_HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#else
#define QCHECK_LOW 0, 8, 1, 9, 2, 10, 3, 11
#define QCHECK_HIGH 4, 12, 5, 13, 6, 14, 7, 15
#endif

void vertical(const std::uint8_t* const* lines, int taps, const std::int32_t* weights, std::size_t bytes,
              std::uint8_t* out) {
  constexpr std::size_t BLOCK = 8 * LANES;
  for (std::size_t i = 0; i < bytes; i += BLOCK) {
    Ints high_left{}, high_right{}, low_left{}, low_right{};
    const std::int32_t* word = weights + 1;
    for (int tap = 0; tap < taps; tap += 2, word += 2) {
      const HalfBytes a = load<HalfBytes>(lines[tap] + i), b = load<HalfBytes>(lines[tap + 1] + i);
      const auto left = __builtin_convertvector(QCHECK_SHUFFLE(a, b, QCHECK_LOW), Words);
      const auto right = __builtin_convertvector(QCHECK_SHUFFLE(a, b, QCHECK_HIGH), Words);
      const auto high = reinterpret_cast<Words>(splat(word[0])), low = reinterpret_cast<Words>(splat(word[1]));
      high_left += dot_pairs(left, high);
      low_left += dot_pairs(left, low);
      high_right += dot_pairs(right, high);
      low_right += dot_pairs(right, low);
    }
    store(out + i, __builtin_convertvector(rounded(high_left, low_left, *weights), Pixels4));
    store(out + i + BLOCK / 2, __builtin_convertvector(rounded(high_right, low_right, *weights), Pixels4));
  }
}

}  // namespace
}  // namespace qcheck
