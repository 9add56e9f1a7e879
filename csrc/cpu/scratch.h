// Working memory of the calling thread, 64-byte aligned and kept between calls: fresh pages would cost more than the
// arithmetic. Throws std::bad_alloc. A second call from the same thread gives the same memory again.
#pragma once
#include <cstddef>

namespace sinfusion {
float* scratch(size_t floats);
}
