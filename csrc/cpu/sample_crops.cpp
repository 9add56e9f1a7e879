// A training batch on the host: a tile of pixels after the other, as the device has them.
#include "../common/sample_crops.h"

namespace sinfusion {

void sample_crops(const SampleCrops& a) {
  const int64_t pixels = pixels_of(a), tiles = a.batch * tiles_of(pixels);
#pragma omp parallel for schedule(static) if (tiles > 8)
  for (int64_t i = 0; i < tiles; ++i) {
    const Tile tile = tile_of(i, pixels);
    float drawn[CROP_NORMALS];
    for (int thread = 0; thread < TILE; ++thread) draw_crop(a, tile, thread, drawn);
    for (int number = 0; number < 3 * tile.count; ++number) crop_number(a, tile, drawn, number);
  }
}

}  // namespace sinfusion
