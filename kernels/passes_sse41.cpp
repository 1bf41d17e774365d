// Compiled with -msse4.1 and only ever called where the processor has it.
#include "pairs.inl"
#include "survey.inl"

namespace qcheck {
extern const Passes PASSES_SSE41;
const Passes PASSES_SSE41 = {"SSE4.1", LANES, PACKING, horizontal, vertical, survey};
}  // namespace qcheck
