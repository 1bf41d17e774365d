// For every processor of the kind that the compiler aims at (SSE2; NEON, which is written and not yet compiled).
#include "passes.inl"

namespace qcheck {
extern const Passes PASSES_BASELINE;
const Passes PASSES_BASELINE = {"baseline", LANES, horizontal, vertical};
}  // namespace qcheck
