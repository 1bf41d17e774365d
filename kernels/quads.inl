// The passes for processors that sum the products of four bytes at once (AVX-512 VNNI, Arm's dot product); compiled once
// for each, see simd.hpp. Three products of digits replace four of the words in pairs.inl, and bytes need not be widened.
#include "passes.hpp"
#include "simd.hpp"

namespace qcheck {
namespace {

static_assert(TAP_STEP == 4 && LANES <= MOST_ROWS);
#if defined(__ARM_FEATURE_DOTPROD)
constexpr Packing PACKING = Packing::signed_quads;
#else
constexpr Packing PACKING = Packing::quads;
#endif

/// The sums of products with each digit of the weights.
struct Digits {
  Ints high{}, middle{}, low{};

  void add(Bytes samples, const std::int32_t* words) {
    high = add_quads(high, samples, splat(words[0]));
    middle = add_quads(middle, samples, splat(words[1]));
    low = add_quads(low, samples, splat(words[2]));
  }
  /// The samples that they make, not yet limited to 0..255. All sums wrap around; the total fits, and so it is exact.
  Ints total(std::int32_t begin) const {
    const auto sum = (reinterpret_cast<Unsigned>(high) << 16) + (reinterpret_cast<Unsigned>(middle) << 8) +
                     reinterpret_cast<Unsigned>(low) + reinterpret_cast<Unsigned>(splat(begin));
    return reinterpret_cast<Ints>(sum) >> WEIGHT_BITS;
  }
};

/// As add_quads multiplies them.
inline Bytes samples(Bytes bytes) { return PACKING == Packing::signed_quads ? bytes ^ SAMPLE_BIAS : bytes; }

/// Of lanes that begin with r0 g0 b0 r1 g1 b1 ... b3: r0 r1 r2 r3, then the greens, the blues, and four that nobody reads.
inline Bytes by_channel(Bytes x) {
#if defined(__AVX512VNNI__)
  const auto order = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11, -1, -1, -1, -1));
  return reinterpret_cast<Bytes>(_mm512_shuffle_epi8(reinterpret_cast<__m512i>(x), order));
#else
  return QCHECK_SHUFFLE(x, x, 0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11, 12, 13, 14, 15);
#endif
}

void horizontal(const std::uint8_t* const* lines, const Axis& axis, const Weights& weights, std::uint8_t* const* out) {
  const int steps = axis.taps / TAP_STEP;
  const std::int32_t* word = weights.words.data();
  const std::int32_t* first = axis.first.data();
  for (int x = 0; x < axis.out; ++x) {
    Digits digits;
    const std::int32_t begin = *word++;
    std::size_t at = static_cast<std::size_t>(CHANNELS) * first[x];
    for (int step = 0; step < steps; ++step, word += 3, at += TAP_STEP * CHANNELS)
      digits.add(samples(by_channel(load_lines(lines, at))), word);
    store_pixel(clamp_byte(digits.total(begin)), out, static_cast<std::size_t>(CHANNELS) * x);
  }
}

/// Four lines' bytes 0 to 3 of each lane, the four of one place together; then 4 to 7, 8 to 11 and 12 to 15.
struct Columns {
  Bytes at[4];

  Columns(Bytes a, Bytes b, Bytes c, Bytes d) {
#if defined(__AVX512VNNI__)
    const auto wide = [](Bytes x) { return reinterpret_cast<__m512i>(x); };
    const __m512i left_ab = _mm512_unpacklo_epi8(wide(a), wide(b)), right_ab = _mm512_unpackhi_epi8(wide(a), wide(b));
    const __m512i left_cd = _mm512_unpacklo_epi8(wide(c), wide(d)), right_cd = _mm512_unpackhi_epi8(wide(c), wide(d));
    at[0] = reinterpret_cast<Bytes>(_mm512_unpacklo_epi16(left_ab, left_cd));
    at[1] = reinterpret_cast<Bytes>(_mm512_unpackhi_epi16(left_ab, left_cd));
    at[2] = reinterpret_cast<Bytes>(_mm512_unpacklo_epi16(right_ab, right_cd));
    at[3] = reinterpret_cast<Bytes>(_mm512_unpackhi_epi16(right_ab, right_cd));
#else
    const auto half = [](Bytes x, Bytes y, bool right) {
      const auto p = reinterpret_cast<uint8x16_t>(x), q = reinterpret_cast<uint8x16_t>(y);
      return vreinterpretq_u16_u8(right ? vzip2q_u8(p, q) : vzip1q_u8(p, q));
    };
    const uint16x8_t left_ab = half(a, b, false), right_ab = half(a, b, true);
    const uint16x8_t left_cd = half(c, d, false), right_cd = half(c, d, true);
    at[0] = reinterpret_cast<Bytes>(vzip1q_u16(left_ab, left_cd));
    at[1] = reinterpret_cast<Bytes>(vzip2q_u16(left_ab, left_cd));
    at[2] = reinterpret_cast<Bytes>(vzip1q_u16(right_ab, right_cd));
    at[3] = reinterpret_cast<Bytes>(vzip2q_u16(right_ab, right_cd));
#endif
  }
};

/// The bytes of four totals, limited to 0..255, in the order that Columns took apart.
inline Bytes together(Ints a, Ints b, Ints c, Ints d) {
#if defined(__AVX512VNNI__)
  const auto left = _mm512_packs_epi32(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b));
  const auto right = _mm512_packs_epi32(reinterpret_cast<__m512i>(c), reinterpret_cast<__m512i>(d));
  return reinterpret_cast<Bytes>(_mm512_packus_epi16(left, right));
#else
  const auto words = [](Ints x, Ints y) {
    return vcombine_s16(vqmovn_s32(reinterpret_cast<int32x4_t>(x)), vqmovn_s32(reinterpret_cast<int32x4_t>(y)));
  };
  return reinterpret_cast<Bytes>(vcombine_u8(vqmovun_s16(words(a, b)), vqmovun_s16(words(c, d))));
#endif
}

void vertical(const std::uint8_t* const* lines, int taps, const std::int32_t* weights, std::size_t bytes,
              std::uint8_t* out) {
  for (std::size_t i = 0; i < bytes; i += sizeof(Bytes)) {
    const auto line = [&](int tap) { return samples(load<Bytes>(lines[tap] + i)); };
    Digits digits[4];
    const std::int32_t* word = weights + 1;
    for (int tap = 0; tap < taps; tap += TAP_STEP, word += 3) {
      const Columns columns(line(tap), line(tap + 1), line(tap + 2), line(tap + 3));
      for (int part = 0; part < 4; ++part) digits[part].add(columns.at[part], word);
    }
    store(out + i, together(digits[0].total(*weights), digits[1].total(*weights), digits[2].total(*weights),
                            digits[3].total(*weights)));
  }
}

}  // namespace
}  // namespace qcheck
