// One source for every processor: GCC's vector extensions, which Clang and every target of ours know, say types,
// arithmetic and shuffles. What they cannot say is the product of 16-bit pairs added up in 32 bits, the one operation
// that makes fixed-point filters fast: it is named here once a processor. (Highway was the other choice: it would have
// been a dependency of the build, or four megabytes of somebody's headers, for this single function.)
#pragma once
#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace qcheck {
namespace {  // every translation unit has its own, for its own processor

#if defined(__AVX2__)
constexpr int LANES = 2;  // of 16 bytes
#else
constexpr int LANES = 1;
#endif

using HalfBytes = std::uint8_t __attribute__((vector_size(8 * LANES)));
using Bytes = std::uint8_t __attribute__((vector_size(16 * LANES)));
using Words = std::int16_t __attribute__((vector_size(16 * LANES)));
using Ints = std::int32_t __attribute__((vector_size(16 * LANES)));
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
#if defined(__AVX2__)
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

/// 0..255.
inline Ints clamp_byte(Ints x) {
  x = x < 0 ? Ints{} : x;
  return x > 255 ? splat(255) : x;
}

}  // namespace
}  // namespace qcheck
