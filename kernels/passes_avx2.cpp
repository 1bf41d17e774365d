// Compiled with -mavx2 and only ever called where the processor has it.
#include "passes.inl"
#include "survey.inl"

namespace qcheck {
extern const Passes PASSES_AVX2;
const Passes PASSES_AVX2 = {"AVX2", LANES, horizontal, vertical, survey};
}  // namespace qcheck
