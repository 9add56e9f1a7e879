// Hands out parts of one block of memory, each aligned as the block is up to a cache line.
#pragma once
#include <stdint.h>

namespace sinfusion {
namespace {

// With a null block it only counts: `used` is then how many bytes the same allocations need.
struct Arena {
  char* block;
  int64_t used = 0;

  explicit Arena(float* block) : block(reinterpret_cast<char*>(block)) {}

  template <class T>
  T* allocate(int64_t count) {
    constexpr int64_t CACHE_LINE_BYTES = 64;
    T* part = reinterpret_cast<T*>(block + used);
    used += (count * int64_t(sizeof(T)) + CACHE_LINE_BYTES - 1) / CACHE_LINE_BYTES * CACHE_LINE_BYTES;
    return part;
  }
};

}  // namespace
}  // namespace sinfusion
