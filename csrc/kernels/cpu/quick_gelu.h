#pragma once
#include <cstdint>

#include "../data_type.h"
#include "../parallel.h"

namespace vleff {

// output = input * sigmoid(1.702 * input), element by element; computed in float32 and rounded once.
struct QuickGeluProblem {
  DataType type;  // float32 or bfloat16
  int64_t elements;
  const void* input;  // [elements]
  void* output;       // [elements], may be `input`
};

struct QuickGeluKernels {
  void (*run)(const QuickGeluProblem&, const Parallel&);
};

}  // namespace vleff
