// The device's sample_crops on the host, for tests: the threads of a tile one after the other, from the last to the
// first. Signature as in csrc/cpu/bindings.cpp.
#include <algorithm>
#include <cmath>

#include "../../csrc/common/sample_crops.h"

using namespace sinfusion;

extern "C" void sample_crops(const uint8_t* frames, int64_t height, int64_t width, int64_t batch, const int64_t* crops,
                             const int64_t* condition_frames, const float* coefficients, const float* coarse_noise,
                             int32_t coarse_height, int32_t coarse_width, const int64_t* seeds, const int64_t* step,
                             int64_t noise_stream, int64_t white_noise_stream, int32_t conditions, bool changes,
                             int32_t crop_height, int32_t crop_width, void* input, bool bf16, float* target) {
  const SampleCrops a{frames,
                      height,
                      width,
                      batch,
                      crops,
                      condition_frames,
                      coefficients,
                      coarse_noise,
                      coarse_height,
                      coarse_width,
                      seeds,
                      step,
                      uint32_t(noise_stream),
                      uint32_t(white_noise_stream),
                      conditions,
                      changes,
                      crop_height,
                      crop_width,
                      input,
                      bf16,
                      target};
  const int64_t pixels = pixels_of(a);
  for (int64_t i = batch * tile_count(pixels); i-- > 0;) {
    const Tile tile = tile_of(i, pixels);
    float normals[CROP_NORMALS];
    std::fill_n(normals, CROP_NORMALS, NAN);  // shows where a normal is used that was not drawn
    for (int thread = TILE_PIXELS; thread-- > 0;) draw_crop_normals(a, tile, thread, normals);
    for (int thread = TILE_PIXELS; thread-- > 0;)
      for (int index = thread; index < 3 * tile.count; index += TILE_PIXELS) crop_value(a, tile, normals, index);
  }
}
