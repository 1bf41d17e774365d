// Compiled with -mavx2 and only ever called where the processor has it.
#include "pairs.inl"
#include "survey.inl"

namespace qcheck {
extern const Passes PASSES_AVX2;
const Passes PASSES_AVX2 = {"AVX2", LANES, PACKING, horizontal, vertical, survey};
}  // namespace qcheck
