#pragma once
#include <cstdint>

#include "../data_type.h"
#include "../parallel.h"

namespace vleff {

// An LSTM over the rows of each sample, in one direction or in both; the second runs from the last row to the
// first. With h and c of the row before, in the direction's order:
//   i, f, g, o = gates + weight h
//   c = sigmoid(f) c + sigmoid(i) tanh(g)
//   h = sigmoid(o) tanh(c)
struct LstmProblem {
  DataType type;
  int64_t batch, total, width, directions;  // width: of h, at least 1; directions: 1 or 2
  const int32_t* offsets;                   // [batch + 1]
  const int32_t* order;                     // [batch], the samples, longest first
  const void* gates;           // [total, directions, 4, width]: what inputs and biases add; i, f, g, o
  const void* weight;          // [directions, 4, width, width]
  const void* initial_hidden;  // [batch, directions, width] or null for zeros
  const float* initial_cell;   // [batch, directions, width] or null for zeros
};

struct LstmOutput {
  void* hidden;     // [total, directions, width], the problem's type
  float* cell;      // [total, directions, width]
  void* activated;  // [total, directions, 4, width], the problem's type: sigmoids and tanh of the gates; or
                    // null
};

struct LstmGradient {
  const void* grad_hidden;    // [total, directions, width], the problem's type
  const float* cell;          // as forward made it
  const void* activated;      // as forward made it
  void* grad_gates;           // [total, directions, 4, width], the problem's type
  void* grad_initial_hidden;  // [batch, directions, width], the problem's type
  float* grad_initial_cell;   // [batch, directions, width]
};

// scratch: 64-byte aligned, scratch_bytes(problem, parallel.threads) bytes.
struct RaggedLstmKernels {
  int64_t (*forward_scratch_bytes)(const LstmProblem&, int64_t threads);
  void (*forward)(const LstmProblem&, const LstmOutput&, void* scratch, const Parallel&);
  int64_t (*backward_scratch_bytes)(const LstmProblem&, int64_t threads);
  void (*backward)(const LstmProblem&, const LstmGradient&, void* scratch, const Parallel&);
};

}  // namespace vleff
