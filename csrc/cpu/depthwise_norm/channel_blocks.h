// How channels lie in vectors.
//
// A block of channels is as many bytes as a vector has. In fp32 that is LANES channels, one vector. In bf16 it is
// 2 LANES channels: the even ones make one vector and the odd ones another, since a shift or a mask then widens them.
//
//     bf16 block:   c0 c1 c2 c3 c4 c5 ...            vector 0: c0 c2 c4 ...     vector 1: c1 c3 c5 ...
//
// What belongs to channels (taps, bias, gain, ...) is packed in the same order: (vectors, rows, LANES).
#pragma once
#include "../depthwise_norm.h"
#include "../vector.h"

namespace sinfusion {
namespace SINFUSION_ISA_NAMESPACE {
namespace {

// In: the type that activations are read as, float or bf16_t.
template <class In>
constexpr int BLOCK_VECTORS = int(sizeof(float) / sizeof(In));
template <class In>
constexpr int BLOCK_CHANNELS = BLOCK_VECTORS<In> * LANES;
template <class In>
inline int64_t block_count(int64_t channels) {
  return (channels + BLOCK_CHANNELS<In> - 1) / BLOCK_CHANNELS<In>;
}
template <class In>
inline int64_t channel_of(int64_t vector, int64_t lane) {
  return vector / BLOCK_VECTORS<In> * BLOCK_CHANNELS<In> + lane * BLOCK_VECTORS<In> + vector % BLOCK_VECTORS<In>;
}
inline int lanes_of(int64_t channels, int64_t block) {  // that are channels, of an fp32 block
  return channels - block * LANES < LANES ? int(channels - block * LANES) : LANES;
}
inline int64_t channels_of(const DepthwiseNorm& a) { return a.channels + a.skip_channels; }

// Vector 0 or 1 of the block at p.
template <int vector>
inline vec_f32 load_vector(const float* p) {
  return load(p);
}
template <int vector>
inline vec_f32 load_vector(const bf16_t* p) {
  return load_deinterleaved<vector>(p);
}
// The same of a pixel with C channels of type T, of which the last fp32 block may have fewer.
template <class In, int vector, class T>
inline vec_f32 load_vector(const T* pixel, int64_t C, int64_t block) {
  if constexpr (BLOCK_VECTORS<In> == 2)
    return load_deinterleaved<vector>(pixel + block * BLOCK_CHANNELS<In>);
  else
    return load(pixel + block * LANES, lanes_of(C, block));
}
template <class In, class T>
inline void store_block(T* pixel, int64_t C, int64_t block, vec_f32 vector0, vec_f32 vector1) {
  if constexpr (BLOCK_VECTORS<In> == 2)
    store_interleaved(pixel + block * BLOCK_CHANNELS<In>, vector0, vector1);
  else
    store(pixel + block * LANES, vector0, lanes_of(C, block));
}

// (C, rows) to (vectors, rows, LANES); zeros in lanes without a channel, and all zeros for null. reverse: the last row
// first.
template <class In>
void pack_channels(const float* from, float* to, int64_t rows, int64_t C, bool reverse = false) {
  for (int64_t vector = 0; vector < block_count<In>(C) * BLOCK_VECTORS<In>; ++vector)
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t lane = 0; lane < LANES; ++lane) {
        const int64_t c = channel_of<In>(vector, lane);
        *to++ = from && c < C ? from[c * rows + (reverse ? rows - 1 - r : r)] : 0.0f;
      }
}

}  // namespace
}  // namespace SINFUSION_ISA_NAMESPACE
}  // namespace sinfusion
