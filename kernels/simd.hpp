// One source for every processor: GCC's vector extensions, which Clang and every target of ours know, say types,
// arithmetic and shuffles. What they cannot say is the sum of products of 2 words or 4 bytes, the operations that make
// fixed-point filters fast: they are named here once a processor. (Highway was the other choice: it would have been a
// dependency of the build, or four megabytes of somebody's headers, for these few functions.)
#pragma once
#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__SSE4_1__)
#include <smmintrin.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace qcheck {
namespace {  // every translation unit has its own, for its own processor

#if defined(__AVX512VNNI__)
constexpr int LANES = 4;  // of 16 bytes
#elif defined(__AVX2__)
constexpr int LANES = 2;
#else
constexpr int LANES = 1;
#endif

using HalfBytes = std::uint8_t __attribute__((vector_size(8 * LANES)));
using Bytes = std::uint8_t __attribute__((vector_size(16 * LANES)));
using Words = std::int16_t __attribute__((vector_size(16 * LANES)));
using UnsignedWords = std::uint16_t __attribute__((vector_size(16 * LANES)));
using Ints = std::int32_t __attribute__((vector_size(16 * LANES)));
using Unsigned = std::uint32_t __attribute__((vector_size(16 * LANES)));  // may wrap around, where Ints may not
using Pixels4 = std::uint8_t __attribute__((vector_size(4 * LANES)));  // four bytes a lane

template <class Vector>
inline Vector load(const void* from) {
  Vector value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

template <class Vector>
inline void store(void* to, Vector value) {
  std::memcpy(to, &value, sizeof value);
}

// Bytes of two vectors of one type, numbered through. GCC has Clang's spelling only since its version 12.
#if defined(__clang__)
#define QCHECK_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define QCHECK_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, decltype(a){__VA_ARGS__})
#endif

inline Ints splat(std::int32_t value) { return value - Ints{}; }

/// a[2i] * b[2i] + a[2i + 1] * b[2i + 1].
inline Ints dot_pairs(Words a, Words b) {
#if defined(__AVX512VNNI__)
  return reinterpret_cast<Ints>(_mm512_madd_epi16(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
#elif defined(__AVX2__)
  return reinterpret_cast<Ints>(_mm256_madd_epi16(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
#elif defined(__SSE2__)
  return reinterpret_cast<Ints>(_mm_madd_epi16(reinterpret_cast<__m128i>(a), reinterpret_cast<__m128i>(b)));
#elif defined(__aarch64__)
  const auto x = reinterpret_cast<int16x8_t>(a), y = reinterpret_cast<int16x8_t>(b);
  return reinterpret_cast<Ints>(vpaddq_s32(vmull_s16(vget_low_s16(x), vget_low_s16(y)), vmull_high_s16(x, y)));
#else
  Ints out;
  for (int i = 0; i < 4; ++i) out[i] = a[2 * i] * b[2 * i] + a[2 * i + 1] * b[2 * i + 1];
  return out;
#endif
}

/// sum + dot_pairs(a, b).
inline Ints add_pairs(Ints sum, Words a, Words b) {
#if defined(__AVX512VNNI__)
  return reinterpret_cast<Ints>(_mm512_dpwssd_epi32(reinterpret_cast<__m512i>(sum), reinterpret_cast<__m512i>(a),
                                                    reinterpret_cast<__m512i>(b)));
#else
  return sum + dot_pairs(a, b);
#endif
}

#if defined(__AVX512VNNI__) || defined(__ARM_FEATURE_DOTPROD)
/// sum[i] + a[4i] * b[4i] + ... + a[4i + 3] * b[4i + 3], wrapping around. The bytes of b have signs; those of a have them
/// on Arm, where all products of the oldest such processors do.
inline Ints add_quads(Ints sum, Bytes a, Ints b) {
#if defined(__AVX512VNNI__)
  return reinterpret_cast<Ints>(_mm512_dpbusd_epi32(reinterpret_cast<__m512i>(sum), reinterpret_cast<__m512i>(a),
                                                    reinterpret_cast<__m512i>(b)));
#else
  return reinterpret_cast<Ints>(vdotq_s32(reinterpret_cast<int32x4_t>(sum), reinterpret_cast<int8x16_t>(a),
                                          reinterpret_cast<int8x16_t>(b)));
#endif
}
#endif

/// 0..255.
inline Ints clamp_byte(Ints x) {
  x = x < 0 ? Ints{} : x;
  return x > 255 ? splat(255) : x;
}

/// Sixteen bytes of each of LANES lines.
inline Bytes load_lines(const std::uint8_t* const* lines, std::size_t at) {
#if defined(__AVX2__)
  const auto pair = [&](int lane) {
    const auto* first = reinterpret_cast<const __m128i*>(lines[lane] + at);
    const auto* second = reinterpret_cast<const __m128i*>(lines[lane + 1] + at);
    return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(first)), _mm_loadu_si128(second), 1);
  };
#if defined(__AVX512VNNI__)
  return reinterpret_cast<Bytes>(_mm512_inserti64x4(_mm512_castsi256_si512(pair(0)), pair(2), 1));
#else
  return reinterpret_cast<Bytes>(pair(0));
#endif
#else
  return load<Bytes>(lines[0] + at);
#endif
}

/// A pixel of each of LANES lines, in the first three of its lane; a byte more than that is written.
inline void store_pixel(Ints pixel, std::uint8_t* const* lines, std::size_t at) {
  std::uint8_t packed[4 * LANES];
  store(packed, __builtin_convertvector(pixel, Pixels4));
  for (int lane = 0; lane < LANES; ++lane) std::memcpy(lines[lane] + at, packed + 4 * lane, 4);
}

}  // namespace
}  // namespace qcheck
