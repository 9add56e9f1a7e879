// For functions of kernels that have to be inlined, whatever the compiler's own estimate of that.
#pragma once

#define ALWAYS_INLINE inline __attribute__((always_inline))
