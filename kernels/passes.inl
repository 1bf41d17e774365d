// Compiled once a processor; see simd.hpp.
#include "passes.hpp"
#include "simd.hpp"

namespace qcheck {
namespace {

static_assert(LANES <= MOST_ROWS);
constexpr std::int32_t HALF = 1 << (WEIGHT_BITS - 1);

/// All sums wrap around; the total fits, and so it is exact. (Unsigned, because signed overflow is undefined.)
inline Ints rounded(Ints high, Ints low) {
  using Unsigned = std::uint32_t __attribute__((vector_size(16 * LANES)));
  const auto sum = (reinterpret_cast<Unsigned>(high) << LOW_BITS) + reinterpret_cast<Unsigned>(low) + HALF;
  return clamp_byte(reinterpret_cast<Ints>(sum) >> WEIGHT_BITS);
}

// Sixteen bytes are r0 g0 b0 r1 g1 b1 r2 ... ; as words in pairs of one channel they are r0 r1 g0 g1 b0 b1 and two that
// nobody reads, and the same of pixels 2 and 3.
#if defined(__AVX2__)
inline Bytes load_lines(const std::uint8_t* const* lines, std::size_t at) {
  return reinterpret_cast<Bytes>(_mm256_inserti128_si256(
      _mm256_castsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(lines[0] + at))),
      _mm_loadu_si128(reinterpret_cast<const __m128i*>(lines[1] + at)), 1));
}
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
inline Bytes load_lines(const std::uint8_t* const* lines, std::size_t at) { return load<Bytes>(lines[0] + at); }
inline Words first_pair(Bytes x) {
  return reinterpret_cast<Words>(
      QCHECK_SHUFFLE(x, Bytes{}, 0, 16, 3, 16, 1, 16, 4, 16, 2, 16, 5, 16, 16, 16, 16, 16));
}
inline Words second_pair(Bytes x) {
  return reinterpret_cast<Words>(
      QCHECK_SHUFFLE(x, Bytes{}, 6, 16, 9, 16, 7, 16, 10, 16, 8, 16, 11, 16, 16, 16, 16, 16));
}
#endif

void horizontal(const std::uint8_t* const* lines, const Axis& axis, const Pairs& pairs, std::uint8_t* const* out) {
  const int steps = axis.taps / TAP_STEP;
  const std::int32_t *high = pairs.high.data(), *low = pairs.low.data();
  const std::int32_t* first = axis.first.data();
  for (int x = 0; x < axis.out; ++x) {
    Ints above{}, below{};
    std::size_t at = static_cast<std::size_t>(CHANNELS) * first[x];
    for (int step = 0; step < steps; ++step) {
      const Bytes bytes = load_lines(lines, at);
      const Words a = first_pair(bytes), b = second_pair(bytes);
      above += dot_pairs(a, reinterpret_cast<Words>(splat(high[0])));
      below += dot_pairs(a, reinterpret_cast<Words>(splat(low[0])));
      above += dot_pairs(b, reinterpret_cast<Words>(splat(high[1])));
      below += dot_pairs(b, reinterpret_cast<Words>(splat(low[1])));
      high += 2;
      low += 2;
      at += TAP_STEP * CHANNELS;
    }
    const auto pixel = __builtin_convertvector(rounded(above, below), Pixels4);
    std::uint8_t packed[4 * LANES];
    store(packed, pixel);
    for (int lane = 0; lane < LANES; ++lane) std::memcpy(out[lane] + CHANNELS * x, packed + 4 * lane, 4);
  }
}

#if defined(__AVX2__)
#define QCHECK_LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define QCHECK_HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#else
#define QCHECK_LOW 0, 8, 1, 9, 2, 10, 3, 11
#define QCHECK_HIGH 4, 12, 5, 13, 6, 14, 7, 15
#endif

void vertical(const std::uint8_t* const* lines, int taps, const std::int32_t* high, const std::int32_t* low,
              std::size_t bytes, std::uint8_t* out) {
  constexpr std::size_t BLOCK = 8 * LANES;
  for (std::size_t i = 0; i < bytes; i += BLOCK) {
    Ints above_left{}, above_right{}, below_left{}, below_right{};
    for (int tap = 0; tap < taps; tap += 2) {
      const HalfBytes a = load<HalfBytes>(lines[tap] + i), b = load<HalfBytes>(lines[tap + 1] + i);
      const auto left = __builtin_convertvector(QCHECK_SHUFFLE(a, b, QCHECK_LOW), Words);
      const auto right = __builtin_convertvector(QCHECK_SHUFFLE(a, b, QCHECK_HIGH), Words);
      const auto k = reinterpret_cast<Words>(splat(high[tap / 2])), l = reinterpret_cast<Words>(splat(low[tap / 2]));
      above_left += dot_pairs(left, k);
      below_left += dot_pairs(left, l);
      above_right += dot_pairs(right, k);
      below_right += dot_pairs(right, l);
    }
    store(out + i, __builtin_convertvector(rounded(above_left, below_left), Pixels4));
    store(out + i + BLOCK / 2, __builtin_convertvector(rounded(above_right, below_right), Pixels4));
  }
}

}  // namespace
}  // namespace qcheck
