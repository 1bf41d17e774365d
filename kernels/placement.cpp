#include "placement.hpp"

#include <limits>
#include <stdexcept>

#include "coefficients.hpp"

namespace qcheck::fused {
namespace {

Axis weighted(int in, int out) {
  Axis axis = bicubic_axis(in, out);
  if (!axis.identity) return axis;
  axis.taps = 1;
  axis.weights.assign(out, 1 << WEIGHT_BITS);
  for (int i = 0; i < out; ++i) axis.first.push_back(i);
  return axis;
}

}  // namespace

Placement::Placement(const std::vector<Tile>& tiles, const Patches& patches) {
  const auto keep = [this](const std::vector<std::int32_t>& some) {
    const std::size_t at = numbers.size();
    numbers.insert(numbers.end(), some.begin(), some.end());
    return at;
  };
  std::int64_t blocks = 0;
  std::size_t values = 0;  // before a tile's own
  first_block.push_back(0);
  for (const Tile& tile : tiles) {
    const Axis across = weighted(tile.width, tile.out_width), along = weighted(tile.height, tile.out_height);
    const std::size_t across_first = keep(across.first), across_weights = keep(across.weights);
    const std::size_t along_first = keep(along.first), along_weights = keep(along.weights);
    offsets_.push_back({across_first, across_weights, along_first, along_weights});
    tiles_.push_back({tile.x, tile.y, {across.in, across.out, across.taps, nullptr, nullptr},
                      {along.in, along.out, along.taps, nullptr, nullptr}, along_goes_first(tile), values});
    values += static_cast<std::size_t>(CHANNELS) * tile.out_width * tile.out_height * patches.repeats;
    blocks += static_cast<std::int64_t>((tile.out_width + OUT_WIDTH - 1) / OUT_WIDTH) *
              ((tile.out_height + OUT_HEIGHT - 1) / OUT_HEIGHT);
    if (blocks > std::numeric_limits<int>::max()) throw std::length_error("the result would be too large");
    first_block.push_back(static_cast<int>(blocks));
  }
}

std::vector<PlacedTile> Placement::placed(const std::int32_t* numbers_at) const {
  auto out = tiles_;
  for (std::size_t i = 0; i < out.size(); ++i) {
    out[i].across.first = numbers_at + offsets_[i].across_first;
    out[i].across.weights = numbers_at + offsets_[i].across_weights;
    out[i].along.first = numbers_at + offsets_[i].along_first;
    out[i].along.weights = numbers_at + offsets_[i].along_weights;
  }
  return out;
}

}  // namespace qcheck::fused
