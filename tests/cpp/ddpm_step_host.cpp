// The device's ddpm_step on the host, for tests: the threads of a tile one after the other, from the last to the first.
// Signature as in csrc/cpu/bindings.cpp.
#include <algorithm>
#include <cmath>

#include "../../csrc/common/ddpm_step.h"

using namespace sinfusion;

extern "C" void ddpm_step(int64_t batch, int64_t pixels, float* x, const void* output, bool output_bf16,
                          const float* prior_mean, const float* coefficients, const int64_t* seeds, int64_t stream,
                          const int64_t* counter, void* inputs, bool inputs_bf16, int64_t channels, float* previous,
                          const bool* known_mask, bool known_mask_shared, const float* known_image,
                          bool known_image_shared) {
  const DdpmStep a{batch,
                   pixels,
                   x,
                   output,
                   output_bf16,
                   prior_mean,
                   coefficients,
                   seeds,
                   uint32_t(stream),
                   counter,
                   inputs,
                   inputs_bf16,
                   channels,
                   previous,
                   known_mask,
                   known_mask_shared,
                   known_image,
                   known_image_shared};
  for (int64_t i = batch * tile_count(pixels); i-- > 0;) {
    const Tile tile = tile_of(i, pixels);
    float normals[DDPM_NORMALS];
    std::fill_n(normals, DDPM_NORMALS, NAN);  // shows where a normal is used that was not drawn
    if (adds_noise(a))
      for (int thread = TILE_PIXELS; thread-- > 0;)
        draw_normals(noise_random(a, tile), tile, pixels, 3, thread, normals);
    for (int thread = TILE_PIXELS; thread-- > 0;)
      for (int index = thread; index < 3 * tile.count; index += TILE_PIXELS) step_value(a, tile, normals, index);
  }
}
