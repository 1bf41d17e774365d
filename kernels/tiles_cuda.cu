#include "tiles_cuda.hpp"

#include <cstring>
#include <stdexcept>

#include "fused.hpp"
#include "fused_survey.hpp"
#include "placement.hpp"

namespace qcheck::cuda {
namespace {

void checked(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

struct DeviceBlock {
  template <class Function>
  __device__ void each(Function function) {
    function(static_cast<int>(threadIdx.x), sums);
    __syncthreads();
  }
  fused::Sums sums;
};

template <class Value>
__global__ void __launch_bounds__(fused::THREADS) render_tiles(const fused::Job<Value> job) {
  __shared__ fused::Shared shared;
  DeviceBlock block;
  fused::Renderer<Value, DeviceBlock>(job, static_cast<int>(blockIdx.x), shared, block).run();
}

struct DeviceThreads {
  template <class Function>
  __device__ void each(Function function) {
    function(static_cast<int>(threadIdx.x));
    __syncthreads();
  }
};

__global__ void __launch_bounds__(fused::THREADS) survey_cells(const fused::SurveyJob job) {
  __shared__ fused::SurveyShared shared;
  DeviceThreads block;
  fused::SurveyBlock<DeviceThreads>(job, static_cast<int>(blockIdx.x), shared, block).run();
}

/// One piece of device memory that is filled from the host at once.
class Upload {
 public:
  template <class Item>
  std::size_t add(const std::vector<Item>& items) {
    return add(items.data(), items.size() * sizeof(Item));
  }
  std::size_t add(const void* from, std::size_t bytes) {
    const std::size_t at = (host_.size() + ALIGNED - 1) / ALIGNED * ALIGNED;
    host_.resize(at + bytes);
    std::memcpy(host_.data() + at, from, bytes);
    return at;
  }
  std::size_t bytes() const { return host_.size(); }
  const std::uint8_t* data() const { return host_.data(); }

 private:
  static constexpr std::size_t ALIGNED = 256;
  std::vector<std::uint8_t> host_;
};

}  // namespace

int devices() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

void* allocate(std::size_t bytes, std::uintptr_t stream) {
  void* memory = nullptr;
  checked(cudaMallocAsync(&memory, bytes, reinterpret_cast<cudaStream_t>(stream)), "no device memory for the result");
  return memory;
}

void release(void* memory) noexcept { cudaFree(memory); }

OnDevice::OnDevice(int device) {
  checked(cudaGetDevice(&before_), "no current CUDA device");
  checked(cudaSetDevice(device), "the image's CUDA device cannot be used");
}

OnDevice::~OnDevice() { cudaSetDevice(before_); }

template <class Value>
void render(const Image& image, const std::vector<Tile>& tiles, const Value* table, Layout layout,
            const Patches& patches, Value* out, std::uintptr_t stream_handle, float* survey) {
  const auto stream = reinterpret_cast<cudaStream_t>(stream_handle);
  const fused::Placement placement(tiles, patches);
  Upload upload;
  const std::size_t numbers = upload.add(placement.numbers), first_block = upload.add(placement.first_block);
  const std::size_t values = upload.add(table, CHANNELS * 256 * sizeof(Value));
  // The tiles point into the device's memory, so it has to be there before they can be written down.
  const std::size_t room = tiles.size() * sizeof(fused::PlacedTile) + 256;
  auto* const memory = static_cast<std::uint8_t*>(allocate(upload.bytes() + room, stream_handle));
  try {
    const std::size_t placed =
        upload.add(placement.placed(reinterpret_cast<const std::int32_t*>(memory + numbers)));
    checked(cudaMemcpyAsync(memory, upload.data(), upload.bytes(), cudaMemcpyHostToDevice, stream),
            "the weights cannot be sent to the device");
    const auto last = image.stride < 0 ? 0 : image.height - 1, first = image.height - 1 - last;
    const fused::Job<Value> job{
        image.data,
        image.data + first * image.stride,
        image.data + last * image.stride + static_cast<std::ptrdiff_t>(CHANNELS) * image.width,
        image.stride,
        reinterpret_cast<const fused::PlacedTile*>(memory + placed),
        reinterpret_cast<const int*>(memory + first_block),
        reinterpret_cast<const Value*>(memory + values),
        layout,
        patches,
        out};
    render_tiles<Value><<<placement.first_block.back(), fused::THREADS, 0, stream>>>(job);
    checked(cudaGetLastError(), "the kernel cannot be launched");
    if (survey) {
      const fused::SurveyJob cells{image.data, image.stride, image.width, image.height, survey};
      survey_cells<<<fused::survey_blocks(cells), fused::THREADS, 0, stream>>>(cells);
      checked(cudaGetLastError(), "the survey cannot be launched");
    }
  } catch (...) {
    cudaFreeAsync(memory, stream);
    throw;
  }
  checked(cudaFreeAsync(memory, stream), "the weights' memory cannot be given back");
}

template void render<float>(const Image&, const std::vector<Tile>&, const float*, Layout, const Patches&, float*,
                            std::uintptr_t, float*);
template void render<std::uint16_t>(const Image&, const std::vector<Tile>&, const std::uint16_t*, Layout,
                                    const Patches&, std::uint16_t*, std::uintptr_t, float*);

}  // namespace qcheck::cuda
