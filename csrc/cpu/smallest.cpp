// Selection of the smallest values, by the C++ library, which sources of an instruction set leave alone (vector.h).
#include <algorithm>

#include "nearest_patches.h"

namespace sinfusion {

void keep_smallest(uint64_t* values, int64_t count, int64_t k) {
  std::nth_element(values, values + k - 1, values + count);
}

void sort_smallest(uint64_t* values, int64_t count, int64_t k) {
  if (count > k) keep_smallest(values, count, k);
  std::sort(values, values + k);
}

}  // namespace sinfusion
