// Compiled with -march=armv8.2-a+dotprod and only ever called where the processor has it.
#include "quads.inl"
#include "survey.inl"

namespace qcheck {
extern const Passes PASSES_DOTPROD;
const Passes PASSES_DOTPROD = {"dot product", LANES, PACKING, horizontal, vertical, survey};
}  // namespace qcheck
