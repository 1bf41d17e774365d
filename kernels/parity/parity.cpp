// Runs the tile kernels over cases with known answers, without Python: for other processors, and under sanitizers. The
// kernel for GPUs runs here too, its blocks one after the other on the CPU ("fused").
//
//     parity CASES
//
// CASES is what tests/test_parity.py writes; all numbers little-endian. Prints a line a pass and exits with 1 if any
// value differs in any bit, 2 if the file is not what it should be.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "../fused.hpp"
#include "../fused_survey.hpp"
#include "../placement.hpp"
#include "../survey.hpp"
#include "../tiles.hpp"

namespace {

constexpr char MAGIC[8] = {'q', 'c', 'k', 't', 'i', 'l', 'e', '2'};

class Reader {
 public:
  explicit Reader(const char* path) : file_(path, std::ios::binary) {
    if (!file_) throw std::runtime_error(std::string(path) + ": cannot be read");
  }
  std::int32_t number() {
    std::int32_t value;
    fill(&value, sizeof value);
    return value;
  }
  template <class Value>
  std::vector<Value> values(std::size_t count) {
    std::vector<Value> out(count);
    fill(out.data(), count * sizeof(Value));
    return out;
  }
  void fill(void* to, std::size_t bytes) {
    if (!file_.read(static_cast<char*>(to), static_cast<std::streamsize>(bytes))) throw std::runtime_error("the file ends too early");
  }

 private:
  std::ifstream file_;
};

struct Case {
  int width, height, stride, threads;
  std::vector<std::uint8_t> bytes;  // [height * stride], less what lies beyond the last row
  std::vector<qcheck::Tile> tiles;
  qcheck::Layout layout;
  qcheck::Patches patches;
};

Case read_case(Reader& in) {
  Case one;
  one.width = in.number();
  one.height = in.number();
  one.stride = in.number();
  one.threads = in.number();
  const int tiles = in.number();
  for (int i = 0; i < tiles; ++i) {
    qcheck::Tile tile;
    for (int* field : {&tile.x, &tile.y, &tile.width, &tile.height, &tile.out_width, &tile.out_height})
      *field = in.number();
    one.tiles.push_back(tile);
  }
  const int side = in.number(), merge = in.number(), repeats = in.number();
  one.layout = side ? qcheck::Layout::patches : qcheck::Layout::planar;
  one.patches = side ? qcheck::Patches{side, merge, repeats} : qcheck::Patches{};
  one.bytes = in.values<std::uint8_t>(static_cast<std::size_t>(one.stride) * (one.height - 1) +
                                      static_cast<std::size_t>(qcheck::CHANNELS) * one.width);
  return one;
}

/// A block of GPU threads, one thread after the other.
struct SerialBlock {
  template <class Function>
  void each(Function function) {
    for (int thread = 0; thread < qcheck::fused::THREADS; ++thread) function(thread, sums[thread]);
  }
  qcheck::fused::Sums sums[qcheck::fused::THREADS];
};

template <class Value>
void render_fused(const qcheck::Image& image, const Case& one, const Value* table, Value* out) {
  const qcheck::fused::Placement placement(one.tiles, one.patches);
  const auto tiles = placement.placed(placement.numbers.data());
  const qcheck::fused::Job<Value> job{image.data, one.bytes.data(), one.bytes.data() + one.bytes.size(),
                                      image.stride, tiles.data(), placement.first_block.data(),
                                      table, one.layout, one.patches, out};
  for (int index = 0; index < placement.first_block.back(); ++index) {
    qcheck::fused::Shared shared;
    SerialBlock block;
    qcheck::fused::Renderer<Value, SerialBlock>(job, index, shared, block).run();
  }
}

struct SerialThreads {
  template <class Function>
  void each(Function function) {
    for (int thread = 0; thread < qcheck::fused::THREADS; ++thread) function(thread);
  }
};

void survey_fused(const qcheck::Image& image, float* map) {
  const qcheck::fused::SurveyJob job{image.data, image.stride, image.width, image.height, map};
  const auto shared = std::make_unique<qcheck::fused::SurveyShared>();
  for (int index = 0; index < qcheck::fused::survey_blocks(job); ++index) {
    SerialThreads block;
    qcheck::fused::SurveyBlock<SerialThreads>(job, index, *shared, block).run();
  }
}

/// How many values are not the wanted bits; the first is named.
template <class Bits, class Value>
long compare(const std::string& name, int number, const std::vector<Value>& got, const std::vector<Bits>& want) {
  long bad = 0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    Bits bits;
    std::memcpy(&bits, &got[i], sizeof bits);
    if (bits == want[i]) continue;
    if (!bad++)
      std::printf("%s: case %d differs first at value %zu of %zu\n", name.c_str(), number, i, want.size());
  }
  return bad;
}

/// Values that differ; Bits is what Value is made of.
template <class Value, class Bits>
long differing(Reader& in, const Case& one, int number) {
  const auto table = in.values<Value>(qcheck::CHANNELS * 256);
  std::vector<std::size_t> starts;
  std::size_t total = 0;
  for (const auto& tile : one.tiles) {
    starts.push_back(total);
    total += static_cast<std::size_t>(qcheck::CHANNELS) * tile.out_width * tile.out_height * one.patches.repeats;
  }
  const auto want = in.values<Bits>(total);
  const qcheck::Image image{one.bytes.data(), one.stride, one.width, one.height};
  const std::size_t cells = static_cast<std::size_t>(qcheck::cells_along(one.width)) * qcheck::cells_along(one.height);
  const auto want_map = in.values<std::uint32_t>(cells * qcheck::STATISTICS);
  long bad = 0;
  for (const auto* passes : qcheck::usable_passes()) {
    std::vector<Value> got(total);
    std::vector<float> map(want_map.size());
    std::vector<Value*> out;
    for (const auto start : starts) out.push_back(got.data() + start);
    qcheck::render<Value>(*passes, image, one.tiles, table.data(), one.layout, one.patches, out.data(), one.threads,
                          map.data());
    bad += compare(passes->name, number, got, want);
    bad += compare(passes->name + std::string(", survey"), number, map, want_map);
  }
  std::vector<Value> got(total);
  std::vector<float> map(want_map.size());
  render_fused<Value>(image, one, table.data(), got.data());
  survey_fused(image, map.data());
  bad += compare("fused", number, got, want);
  return bad + compare("fused, survey", number, map, want_map);
}

int compare_all(const char* path) {
  Reader in(path);
  char magic[sizeof MAGIC];
  in.fill(magic, sizeof magic);
  if (std::memcmp(magic, MAGIC, sizeof MAGIC)) throw std::runtime_error("not a file of cases");
  const int count = in.number();
  long bad = 0;
  for (int i = 0; i < count; ++i) {
    const Case one = read_case(in);
    bad += in.number() == 16 ? differing<std::uint16_t, std::uint16_t>(in, one, i)
                             : differing<float, std::uint32_t>(in, one, i);
  }
  for (const auto* passes : qcheck::usable_passes()) std::printf("%s: %d cases\n", passes->name, count);
  std::printf("fused: %d cases\n", count);
  std::printf("%ld values differ\n", bad);
  return bad ? 1 : 0;
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 2) {
    std::fprintf(stderr, "usage: parity CASES\n");
    return 2;
  }
  try {
    return compare_all(arguments[1]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  }
}
