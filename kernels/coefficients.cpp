#include "coefficients.hpp"

#include <algorithm>
#include <cmath>

// Every double here has to round as in Pillow: this file is compiled without fused multiply-adds (CMakeLists.txt).

namespace qcheck {
namespace {

/// Keys' cubic convolution with a = -0.5, evaluated in Pillow's order.
double cubic(double x) {
  constexpr double a = -0.5;
  x = std::abs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
  return 0;
}

}  // namespace

Axis bicubic_axis(int in, int out) {
  Axis axis;
  axis.in = in;
  axis.out = out;
  axis.identity = in == out;
  if (axis.identity) return axis;
  const double scale = static_cast<double>(in) / out;
  const double widened = std::max(scale, 1.0);  // shrinking widens the filter, enlarging does not narrow it
  const double support = 2 * widened, narrow = 1 / widened;
  axis.first.resize(out);
  axis.count.resize(out);
  const auto centre_of = [&](int i) { return (i + 0.5) * scale; };
  int most = 0;
  for (int i = 0; i < out; ++i) {
    const double centre = centre_of(i);
    const int first = std::max(0, static_cast<int>(centre - support + 0.5));
    const int end = std::min(in, static_cast<int>(centre + support + 0.5));
    axis.first[i] = first;
    axis.count[i] = end - first;
    most = std::max(most, end - first);
  }
  axis.taps = (most + TAP_STEP - 1) / TAP_STEP * TAP_STEP;
  axis.weights.assign(static_cast<std::size_t>(out) * axis.taps, 0);
  std::vector<double> exact(most);
  for (int i = 0; i < out; ++i) {
    const double centre = centre_of(i);
    double sum = 0;
    for (int tap = 0; tap < axis.count[i]; ++tap) {
      exact[tap] = cubic((tap + axis.first[i] - centre + 0.5) * narrow);
      sum += exact[tap];
    }
    // A window that would be read past the last sample begins earlier, with weights of 0 in front.
    const int first = std::max(0, std::min(axis.first[i], in - axis.taps)), moved = axis.first[i] - first;
    for (int tap = 0; tap < axis.count[i]; ++tap) {
      const double weight = (sum != 0 ? exact[tap] / sum : exact[tap]) * (1 << WEIGHT_BITS);
      axis.weights[static_cast<std::size_t>(i) * axis.taps + moved + tap] =
          static_cast<int>(weight + (weight < 0 ? -0.5 : 0.5));
    }
    axis.first[i] = first;
    axis.count[i] += moved;
  }
  return axis;
}

}  // namespace qcheck
