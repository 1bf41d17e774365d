#include "passes.hpp"

#if defined(QCHECK_DOTPROD) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace qcheck {

extern const Passes PASSES_BASELINE;
#if defined(QCHECK_X86)
extern const Passes PASSES_VNNI, PASSES_AVX2, PASSES_SSE41;
#elif defined(QCHECK_DOTPROD)
extern const Passes PASSES_DOTPROD;

namespace {
bool has_dotprod() {
#if defined(__linux__)
  constexpr unsigned long ASIMDDP = 1 << 20;  // in the kernel's list of what an arm64 processor has
  return getauxval(AT_HWCAP) & ASIMDDP;
#else
  return true;  // every Mac has it
#endif
}
}  // namespace
#endif

std::vector<const Passes*> usable_passes() {
  std::vector<const Passes*> usable;
#if defined(QCHECK_X86)
  if (__builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
    usable.push_back(&PASSES_VNNI);
  if (__builtin_cpu_supports("avx2")) usable.push_back(&PASSES_AVX2);
  if (__builtin_cpu_supports("sse4.1")) usable.push_back(&PASSES_SSE41);
#elif defined(QCHECK_DOTPROD)
  if (has_dotprod()) usable.push_back(&PASSES_DOTPROD);
#endif
  usable.push_back(&PASSES_BASELINE);
  return usable;
}

namespace {

/// `count` parts of neighbouring taps in one word, the first lowest.
std::int32_t word(const std::int32_t* parts, int count) {
  const int bits = 32 / count;
  std::uint32_t all = 0;
  for (int i = count; i-- > 0;) all = all << bits | (static_cast<std::uint32_t>(parts[i]) & ((1u << bits) - 1));
  return static_cast<std::int32_t>(all);
}

void add_pair(const std::int32_t* weights, std::vector<std::int32_t>& words) {
  constexpr std::int32_t LOW_MASK = (1 << LOW_BITS) - 1;
  const std::int32_t high[2] = {weights[0] >> LOW_BITS, weights[1] >> LOW_BITS};
  const std::int32_t low[2] = {weights[0] & LOW_MASK, weights[1] & LOW_MASK};
  words.push_back(word(high, 2));
  words.push_back(word(low, 2));
}

void add_quad(const std::int32_t* weights, std::vector<std::int32_t>& words) {
  std::int32_t digits[3][4];  // the highest first
  for (int tap = 0; tap < 4; ++tap) {
    const std::int32_t low = static_cast<std::int8_t>(weights[tap]), rest = (weights[tap] - low) >> 8;
    const std::int32_t middle = static_cast<std::int8_t>(rest);
    digits[0][tap] = (rest - middle) >> 8;  // fits: a weight is hardly more than 1, and 2 would fit
    digits[1][tap] = middle;
    digits[2][tap] = low;
  }
  for (const auto& digit : digits) words.push_back(word(digit, 4));
}

}  // namespace

Weights::Weights(const Axis& axis, Packing packing)
    : stride(axis.identity ? 0 : 1 + (packing == Packing::pairs ? axis.taps : axis.taps / 4 * 3)) {
  if (axis.identity) return;
  words.reserve(static_cast<std::size_t>(axis.out) * stride);
  for (int sample = 0; sample < axis.out; ++sample) {
    const std::int32_t* weights = axis.weights.data() + static_cast<std::size_t>(sample) * axis.taps;
    std::int32_t sum = 0;  // about 1
    for (int tap = 0; tap < axis.taps; ++tap) sum += weights[tap];
    words.push_back(packing == Packing::signed_quads ? HALF + SAMPLE_BIAS * sum : HALF);
    if (packing == Packing::pairs)
      for (int tap = 0; tap < axis.taps; tap += 2) add_pair(weights + tap, words);
    else
      for (int tap = 0; tap < axis.taps; tap += 4) add_quad(weights + tap, words);
  }
}

}  // namespace qcheck
