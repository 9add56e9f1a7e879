// Compiled once for each instruction set; no C++ library here (see vector.h).
#include "philox.h"

#include "threads.h"

namespace sinfusion {
namespace SINFUSION_ISA_NAMESPACE {
namespace {

constexpr int64_t BLOCKS_PER_CHUNK = 1024;

// Whole blocks in loops that the compiler vectorizes, then the rest of a row's last block.
template <class T>
void draw(const PhiloxRows& a, T* out) {
  const int64_t blocks = (a.count + 3) / 4, chunks = (blocks + BLOCKS_PER_CHUNK - 1) / BLOCKS_PER_CHUNK;
  const uint64_t step = resolve(a.at);
  parallel_for(a.batch * chunks, 1, [&](int64_t i) {
    const int64_t row = i / chunks, first = i % chunks * BLOCKS_PER_CHUNK;
    const int64_t end = first + BLOCKS_PER_CHUNK < blocks ? first + BLOCKS_PER_CHUNK : blocks,
                  whole = end < blocks ? end : a.count / 4;
    draw_blocks({uint64_t(a.seeds[row]), a.stream, step}, uint32_t(first), int(whole - first),
                out + row * a.count + 4 * first);
    if (whole < end) draw_block(a, row * blocks + whole, out);
  });
}

}  // namespace

void uniform_bits(const PhiloxRows& a, int64_t* out) { draw(a, out); }
void normal(const PhiloxRows& a, float* out) { draw(a, out); }

}  // namespace SINFUSION_ISA_NAMESPACE
}  // namespace sinfusion
