// The fields of what only the CPU library has.
#pragma once
#include "../common/fields.h"
#include "dense.h"
#include "depthwise_norm.h"
#include "nearest_patches.h"
#include "posterior.h"

namespace sinfusion {

struct Add {
  void* to;
  const void* value;
  bool bf16;
  int64_t count;
};

inline void read_fields(Fields& fields, Add& a) {
  READ(to);
  READ(value);
  READ(bf16);
  READ(count);
}

inline void read_fields(Fields& fields, NearestPatches& a) {
  READ_AS("query", a.query.data);
  READ_AS("query_size", a.query);
  READ_AS("key", a.key.data);
  READ_AS("key_size", a.key);
  READ(channel_pairs);
  READ(patch);
  READ(k);
  READ(norms);
  READ(index);
  READ(distance);
}

inline void read_fields(Fields& fields, Posterior& a) {
  READ(count);
  READ(k);
  READ(rows);
  READ(distance);
  READ(values);
  READ(size);
  READ(of_distance);
  READ(observed);
  READ(of_observed);
  READ(out);
}

inline void read_common_fields(Fields& fields, DepthwiseNorm& a) {
  READ(batch);
  READ(height);
  READ(width);
  READ(channels);
  READ(skip_channels);
  READ(bf16);
  READ(x);
  READ(skip);
  READ(weight);
  READ(gain);
}

inline void read_fields(Fields& fields, DepthwiseNormForward& a) {
  read_common_fields(fields, a);
  READ(bias);
  READ(shift);
  READ(shift_stride);
  READ(offset);
  READ(eps);
  READ(out);
  READ(norm_input);
  READ(mean);
  READ(rstd);
}

inline void read_fields(Fields& fields, DepthwiseNormBackward& a) {
  read_common_fields(fields, a);
  READ(grad_out);
  READ(norm_input);
  READ(mean);
  READ(rstd);
  READ(grad_x);
  READ(grad_skip);
  READ(grad_weight);
  READ(grad_bias);
  READ(grad_shift);
  READ(grad_shift_stride);
  READ(grad_gain);
  READ(grad_offset);
}

inline void read_common_fields(Fields& fields, Dense& a) {
  READ(batch);
  READ(height);
  READ(width);
  READ(channels);
  READ(skip_channels);
  READ(out_channels);
  READ(kernel_size);
  READ(bf16);
  READ(x);
  READ(skip);
  READ(weight);
}

inline void read_fields(Fields& fields, DenseForward& a) {
  read_common_fields(fields, a);
  READ(bias);
  READ(residual);
  READ(gelu);
  READ(out);
  READ(z);
}

inline void read_fields(Fields& fields, DenseBackward& a) {
  read_common_fields(fields, a);
  READ(grad_out);
  READ(z);
  READ(grad_z);
  READ(grad_x);
  READ(grad_skip);
  READ(grad_weight);
  READ(grad_bias);
}

}  // namespace sinfusion
