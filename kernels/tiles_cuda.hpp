// The tile kernel on an NVIDIA GPU.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "tiles.hpp"

namespace qcheck::cuda {

int devices();  // that can be used now; 0 without a driver

/// Memory of the current device, to be used on a stream. Throws std::runtime_error with CUDA's own words.
void* allocate(std::size_t bytes, std::uintptr_t stream);
/// Waits for the device and gives memory back.
void release(void* memory) noexcept;

/// Makes `device` the current one as long as it lives.
class OnDevice {
 public:
  explicit OnDevice(int device);
  ~OnDevice();
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int before_ = 0;
};

/// As qcheck::render, all tiles one after the other in `out`, in one launch on `stream`. `image` and `out` lie on the
/// current device, `table` on the host; so does `survey`, null or the map to fill too, in a launch of its own. Returns when
/// all is queued; what it needs is freed behind it.
template <class Value>
void render(const Image& image, const std::vector<Tile>& tiles, const Value* table, Layout layout,
            const Patches& patches, Value* out, std::uintptr_t stream, float* survey = nullptr);

}  // namespace qcheck::cuda
