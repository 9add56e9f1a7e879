// Sums of rows, many in one launch; see add_rows_sm90.cu.
#pragma once
#include <cstdint>

namespace sinfusion {

constexpr int MOST_SUMS = 16;

struct AddRows {
  // (count, 5), in host memory: address of (groups, rows, numbers) fp32, address of (groups, numbers) fp32 that are
  // written, groups, rows, numbers; addresses are multiples of 16, numbers of 4
  const int64_t* sums;
  int64_t count;  // up to MOST_SUMS
};

int add_rows_sm90(const AddRows& a, void* cuda_stream);

}  // namespace sinfusion
