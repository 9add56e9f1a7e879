// Working memory, 64-byte aligned and kept between calls: page faults would cost more than the arithmetic. Each
// function returns the same memory to a thread every time, enlarged where needed. Both throw std::bad_alloc.
#pragma once
#include <cstddef>

namespace sinfusion {
float* caller_scratch(size_t floats);  // of the thread that calls an operator
float* thread_scratch(size_t floats);  // of any thread, for the chunks of a call
}  // namespace sinfusion
