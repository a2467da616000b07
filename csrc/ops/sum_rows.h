#pragma once
#include "checks.h"

namespace vleff {

// sums[row] = sum over i with index[i] = row of rows[i], of the type `type`. Sums are made in float32 and in
// the order of i; threads divide the columns, so that their number changes no bit. rows: [count, ...]; index:
// int32 [count] in [0, stored), on the CPU
Tensor sum_rows(const Tensor& rows, const int32_t* index, int64_t stored, ScalarType type);

}  // namespace vleff
