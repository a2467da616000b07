#pragma once

namespace vleff::cuda {

// Row numbers in memory of rows that are gathered; on the device.
struct RowIndex {
  const void* numbers;  // [total], int32 or int64, or null where rows follow each other
  bool is_int64;
};

}  // namespace vleff::cuda
