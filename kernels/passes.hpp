// What is compiled for each processor: the two passes of Pillow's resize, each rounded to bytes as there, and the survey.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "coefficients.hpp"

namespace qcheck {

constexpr int CHANNELS = 3;
constexpr int SLACK = 64;  // bytes that a pass may read or write beyond a line's end
constexpr int MOST_ROWS = 4;
constexpr int CELL = 32, SURVEY_LINES = 8, STATISTICS = 8;  // see survey.hpp

constexpr std::int32_t HALF = 1 << (WEIGHT_BITS - 1);  // what rounds a sum
constexpr int LOW_BITS = 15;                           // of a weight in pairs
constexpr int SAMPLE_BIAS = 128;                       // makes an unsigned byte a signed one

/// What a processor multiplies fast is shorter than a weight, so it takes a weight in parts and several taps at once.
enum class Packing {
  pairs,         // high * 2^LOW_BITS + low, two taps in a word: high and low of taps 0 and 1, of taps 2 and 3, ...
  quads,         // three signed digits of base 256, four taps in a word: the highest of taps 0 to 3, the next, ...
  signed_quads,  // the same, for products of signed bytes: samples less SAMPLE_BIAS
};

/// Weights as passes take them: of every output sample what its sum begins with, then its words.
struct Weights {
  Weights(const Axis& axis, Packing packing);
  const std::int32_t* of(int sample) const { return words.data() + static_cast<std::size_t>(sample) * stride; }
  int stride;
  std::vector<std::int32_t> words;  // [out * stride]
};

struct Passes {
  const char* name;
  int rows;  // that `horizontal` takes at once
  Packing packing;
  /// `rows` lines of packed RGB, `axis.in` pixels each and readable for SLACK more bytes, to `rows` lines of `axis.out`
  /// pixels, writable likewise.
  void (*horizontal)(const std::uint8_t* const* lines, const Axis& axis, const Weights& weights,
                     std::uint8_t* const* out);
  /// One line of `bytes` bytes out of `taps` lines with the weights of one output sample.
  void (*vertical)(const std::uint8_t* const* lines, int taps, const std::int32_t* weights, std::size_t bytes,
                   std::uint8_t* out);
  /// A row of cells of the survey out of its SURVEY_LINES lines of `width` pixels: STATISTICS a cell.
  void (*survey)(const std::uint8_t* const* lines, int width, float* out);
};

std::vector<const Passes*> usable_passes();  // on this processor, the fastest first

}  // namespace qcheck
