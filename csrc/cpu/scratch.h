// Working memory, 64-byte aligned and kept between calls: fresh pages would cost more than the arithmetic. Both throw
// std::bad_alloc; asked again, the same thread gets the same memory.
#pragma once
#include <cstddef>

namespace sinfusion {
float* caller_scratch(size_t floats);  // of a call, for the thread that makes it
float* thread_scratch(size_t floats);  // of a thread that works on pieces of a call
}  // namespace sinfusion
