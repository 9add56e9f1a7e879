// OpenMP's threads, or the only one there is. In an unnamed namespace: see vector.h.
#pragma once
#ifdef _OPENMP
#include <omp.h>
#endif

namespace sinfusion {
namespace {

inline int max_threads() {
#ifdef _OPENMP
  return omp_get_max_threads();
#else
  return 1;
#endif
}
inline int threads() {  // at work where it is called
#ifdef _OPENMP
  return omp_get_num_threads();
#else
  return 1;
#endif
}
inline int thread() {
#ifdef _OPENMP
  return omp_get_thread_num();
#else
  return 0;
#endif
}

}  // namespace
}  // namespace sinfusion
