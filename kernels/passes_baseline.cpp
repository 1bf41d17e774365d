// For every processor of the kind that the compiler aims at (SSE2; NEON).
#include "pairs.inl"
#include "survey.inl"

namespace qcheck {
extern const Passes PASSES_BASELINE;
const Passes PASSES_BASELINE = {"baseline", LANES, PACKING, horizontal, vertical, survey};
}  // namespace qcheck
