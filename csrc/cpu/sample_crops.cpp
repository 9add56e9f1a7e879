// A tile of pixels after the other, as the device has them. Compiled once for each instruction set; no C++ library here
// (see vector.h).
#include "sample_crops.h"

namespace sinfusion {
namespace SINFUSION_ISA_NAMESPACE {

void sample_crops(const SampleCrops& a) {
  const int64_t pixels = pixels_of(a), tiles = a.batch * tiles_of(pixels);
#pragma omp parallel for schedule(static) if (tiles > 8)
  for (int64_t i = 0; i < tiles; ++i) {
    const Tile tile = tile_of(i, pixels);
    float drawn[CROP_NORMALS];
    draw_tile(noise_of(a, tile), tile, pixels, 3, drawn);
    if (has_grain(a, tile)) draw_tile(grain_of(a, tile), tile, pixels, 3 * a.conditions, drawn + 3 * TILE_NORMALS);
    for (int number = 0; number < 3 * tile.count; ++number) crop_number(a, tile, drawn, number);
  }
}

}  // namespace SINFUSION_ISA_NAMESPACE
}  // namespace sinfusion
