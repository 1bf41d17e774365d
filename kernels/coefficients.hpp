// The weights of Pillow's antialiased bicubic resize along one axis, in its fixed point.
#pragma once
#include <cstdint>
#include <vector>

namespace qcheck {

constexpr int WEIGHT_BITS = 22;  // 32, less 8 of a sample and 2 of headroom for weights that overshoot 1
constexpr int TAP_STEP = 4;      // the kernels read four taps at a time

/// Of every output sample: its first input sample, how many count, and their weights. `taps` is the most that any needs,
/// rounded up to TAP_STEP; unused weights are 0. A window of `taps` ends less than TAP_STEP samples beyond the input, if
/// at all. Where the sizes are equal there is nothing to resample (`identity`), as in Pillow, which leaves such a pass
/// out.
struct Axis {
  int in = 0, out = 0, taps = 0;
  bool identity = false;
  std::vector<std::int32_t> first, count;  // [out]
  std::vector<std::int32_t> weights;       // [out * taps]
};

Axis bicubic_axis(int in, int out);

}  // namespace qcheck
