#include "scratch.h"

#include <cstdlib>
#include <new>

namespace sinfusion {
namespace {

struct Buffer {
  float* data = nullptr;
  size_t floats = 0;
  ~Buffer() { std::free(data); }
};

float* at_least(Buffer& buffer, size_t floats) {
  if (buffer.floats < floats) {
    std::free(buffer.data);
    buffer.floats = 0;
    const size_t bytes = (floats * sizeof(float) + 63) / 64 * 64;
    buffer.data = static_cast<float*>(std::aligned_alloc(64, bytes));
    if (!buffer.data) throw std::bad_alloc();
    buffer.floats = floats;
  }
  return buffer.data;
}

}  // namespace

float* caller_scratch(size_t floats) {
  thread_local Buffer buffer;
  return at_least(buffer, floats);
}

float* thread_scratch(size_t floats) {
  thread_local Buffer buffer;
  return at_least(buffer, floats);
}

}  // namespace sinfusion
