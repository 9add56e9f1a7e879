// SINFUSION_HD marks functions that nvcc compiles for host and device.
#pragma once

#ifdef __CUDACC__
#define SINFUSION_HD __host__ __device__
#else
#define SINFUSION_HD
#endif
