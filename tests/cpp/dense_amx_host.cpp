// dense in AMX tiles alone, for machines that emulate the instructions: the shipped library uses only what a machine
// has. Signatures as in csrc/cpu/bindings.cpp.
#include "../../csrc/cpu/dense.h"
#include "../../csrc/cpu/threads.h"

using namespace sinfusion;

extern "C" void allow_threads(int count) { set_num_threads(count); }

extern "C" void dense_forward(int64_t batch, int64_t height, int64_t width, int64_t channels, int64_t skip_channels,
                              int64_t out_channels, int64_t kernel_size, bool bf16, void* x, void* skip, float* weight,
                              float* bias, void* residual, bool gelu, void* out, void* z) {
  amx::dense_forward({{batch, height, width, channels, skip_channels, out_channels, kernel_size, bf16, x, skip, weight},
                      bias,
                      residual,
                      gelu,
                      out,
                      z});
}

extern "C" void dense_backward(int64_t batch, int64_t height, int64_t width, int64_t channels, int64_t skip_channels,
                               int64_t out_channels, int64_t kernel_size, bool bf16, void* x, void* skip, float* weight,
                               void* grad_out, void* z, void* grad_z, void* grad_x, void* grad_skip, float* grad_weight,
                               float* grad_bias) {
  amx::dense_backward(
      {{batch, height, width, channels, skip_channels, out_channels, kernel_size, bf16, x, skip, weight},
       grad_out,
       z,
       grad_z,
       grad_x,
       grad_skip,
       grad_weight,
       grad_bias});
}
