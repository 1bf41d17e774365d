// Compiled with -mavx512bw -mavx512vl -mavx512vnni and only ever called where the processor has it.
#include "quads.inl"
#include "survey.inl"

namespace qcheck {
extern const Passes PASSES_VNNI;
const Passes PASSES_VNNI = {"AVX-512 VNNI", LANES, PACKING, horizontal, vertical, survey};
}  // namespace qcheck
