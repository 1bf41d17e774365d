// Tiles cut into blocks, with the weights of all of them in one piece of memory that can be sent to a device.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "fused.hpp"
#include "tiles.hpp"

namespace qcheck::fused {

class Placement {
 public:
  Placement(const std::vector<Tile>& tiles, const Patches& patches);
  /// The tiles, their weights read at `numbers_at`, wherever `numbers` will have been copied to.
  std::vector<PlacedTile> placed(const std::int32_t* numbers_at) const;

  std::vector<std::int32_t> numbers;
  std::vector<int> first_block;  // of each tile, and their number after the last

 private:
  struct Offsets {
    std::size_t across_first, across_weights, along_first, along_weights;
  };
  std::vector<PlacedTile> tiles_;
  std::vector<Offsets> offsets_;
};

}  // namespace qcheck::fused
