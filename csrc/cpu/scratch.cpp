#include "scratch.h"

#include <cstdlib>
#include <new>

namespace sinfusion {
namespace {

struct Memory {
  float* data = nullptr;
  size_t floats = 0;
  ~Memory() { std::free(data); }
};

float* enough(Memory& memory, size_t floats) {
  if (memory.floats < floats) {
    std::free(memory.data);
    memory.floats = 0;
    const size_t bytes = (floats * sizeof(float) + 63) / 64 * 64;
    memory.data = static_cast<float*>(std::aligned_alloc(64, bytes));
    if (!memory.data) throw std::bad_alloc();
    memory.floats = floats;
  }
  return memory.data;
}

}  // namespace

float* caller_scratch(size_t floats) {
  thread_local Memory memory;
  return enough(memory, floats);
}

float* thread_scratch(size_t floats) {
  thread_local Memory memory;
  return enough(memory, floats);
}

}  // namespace sinfusion
