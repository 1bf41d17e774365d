#include "passes.hpp"

namespace qcheck {

extern const Passes PASSES_BASELINE;
#if defined(QCHECK_AVX2)
extern const Passes PASSES_AVX2;
#endif

std::vector<const Passes*> usable_passes() {
  std::vector<const Passes*> usable;
#if defined(QCHECK_AVX2)
  if (__builtin_cpu_supports("avx2")) usable.push_back(&PASSES_AVX2);
#endif
  usable.push_back(&PASSES_BASELINE);
  return usable;
}

Pairs::Pairs(const Axis& axis) : high(axis.weights.size() / 2), low(axis.weights.size() / 2) {
  const auto packed = [](std::int32_t first, std::int32_t second) {
    return static_cast<std::int32_t>((static_cast<std::uint32_t>(first) & 0xffff) |
                                     static_cast<std::uint32_t>(second) << 16);
  };
  for (std::size_t i = 0; i < high.size(); ++i) {
    const std::int32_t first = axis.weights[2 * i], second = axis.weights[2 * i + 1];
    high[i] = packed(first >> LOW_BITS, second >> LOW_BITS);
    low[i] = packed(first & LOW_MASK, second & LOW_MASK);
  }
}

}  // namespace qcheck
