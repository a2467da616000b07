#include "../kernels/cpu/ragged_lstm.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <numeric>
#include <tuple>
#include <vector>

#include "../kernels/cpu/isa.h"
#include "checks.h"
#include "parallel.h"

VLEFF_DISPATCH(RaggedLstmKernels, ragged_lstm_kernels)

namespace vleff {
namespace {

// Checked; holds the tensors that `problem` points into.
struct Inputs {
  LstmProblem problem{};
  Tensor gates, weight, offsets;
  OptionalTensor initial_hidden, initial_cell;
  std::vector<int32_t> order;
};

Inputs checked_inputs(const char* op, const Tensor& gates, const Tensor& weight, const Tensor& offsets,
                      int64_t max_length, const OptionalTensor& initial_hidden,
                      const OptionalTensor& initial_cell) {
  check_tensor(op, "gates", gates, {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half},
               {any_size, any_size}, "[total, directions * 4 * width]");
  const ScalarType type = gates.scalar_type();
  const int64_t total = gates.size(0);
  if (total > INT32_MAX) reject(op, "gates", "at most 2^31 - 1 rows", describe(gates));
  check_tensor(op, "weight", weight, {type}, {any_size, any_size, any_size},
               "[directions, 4 * width, width]");
  const int64_t directions = weight.size(0), width = weight.size(2);
  if (directions < 1 || directions > 2 || width < 1 || weight.size(1) != 4 * width) {
    reject(op, "weight", "[directions, 4 * width, width] with 1 or 2 directions and width at least 1",
           describe(weight));
  }
  check_tensor(op, "gates", gates, {type}, {any_size, directions * 4 * width},
               "[total, directions * 4 * width]");
  check_tensor(op, "offsets", offsets, {ScalarType::Int}, {any_size}, "[batch + 1]");
  if (offsets.numel() == 0) reject(op, "offsets", "at least one offset", describe(offsets));
  const int64_t batch = offsets.numel() - 1;
  if (initial_hidden) {
    check_tensor(op, "initial_hidden", *initial_hidden, {type}, {batch, directions * width},
                 "[batch, directions * width]");
  }
  if (initial_cell) {
    check_tensor(op, "initial_cell", *initial_cell, {ScalarType::Float}, {batch, directions * width},
                 "[batch, directions * width]");
  }
  Inputs inputs{{},
                as_contiguous(gates),
                as_contiguous(weight),
                as_contiguous(offsets),
                as_contiguous(initial_hidden),
                as_contiguous(initial_cell),
                std::vector<int32_t>(batch)};
  const int32_t* places = inputs.offsets.const_data_ptr<int32_t>();
  check_offsets(op, "offsets", places, batch, total, "max_length", max_length);
  std::iota(inputs.order.begin(), inputs.order.end(), 0);
  std::stable_sort(inputs.order.begin(), inputs.order.end(), [places](int32_t first, int32_t second) {
    return places[first + 1] - places[first] > places[second + 1] - places[second];
  });
  inputs.problem = {data_type(gates),
                    batch,
                    total,
                    width,
                    directions,
                    places,
                    inputs.order.data(),
                    inputs.gates.const_data_ptr(),
                    inputs.weight.const_data_ptr(),
                    inputs.initial_hidden ? inputs.initial_hidden->const_data_ptr() : nullptr,
                    inputs.initial_cell ? inputs.initial_cell->const_data_ptr<float>() : nullptr};
  return inputs;
}

std::tuple<Tensor, Tensor, Tensor> forward(Tensor gates, Tensor weight, Tensor offsets, int64_t max_length,
                                           OptionalTensor initial_hidden, OptionalTensor initial_cell,
                                           bool activations) {
  const Inputs inputs =
      checked_inputs("ragged_lstm", gates, weight, offsets, max_length, initial_hidden, initial_cell);
  const LstmProblem& problem = inputs.problem;
  const ScalarType type = gates.scalar_type();
  const int64_t columns = problem.directions * problem.width;
  Tensor hidden = torch::stable::empty({problem.total, columns}, type);
  Tensor cell = torch::stable::empty({problem.total, columns}, ScalarType::Float);
  Tensor activated = torch::stable::empty({activations ? problem.total : 0, 4 * columns}, type);
  const LstmOutput output{hidden.mutable_data_ptr(), cell.mutable_data_ptr<float>(),
                          activations ? activated.mutable_data_ptr() : nullptr};
  const RaggedLstmKernels& kernels = active_ragged_lstm_kernels();
  const Parallel parallel = torch_parallel();
  const Scratch scratch(kernels.forward_scratch_bytes(problem, parallel.threads));
  kernels.forward(problem, output, scratch.data(), parallel);
  return {hidden, cell, activated};
}

std::tuple<Tensor, Tensor, Tensor> backward(Tensor grad_hidden, Tensor cell, Tensor activated, Tensor gates,
                                            Tensor weight, Tensor offsets, int64_t max_length,
                                            OptionalTensor initial_hidden, OptionalTensor initial_cell) {
  const char* op = "ragged_lstm_backward";
  const Inputs inputs = checked_inputs(op, gates, weight, offsets, max_length, initial_hidden, initial_cell);
  const LstmProblem& problem = inputs.problem;
  const ScalarType type = gates.scalar_type();
  const int64_t columns = problem.directions * problem.width;
  check_tensor(op, "grad_hidden", grad_hidden, {type}, {problem.total, columns},
               "[total, directions * width]");
  check_tensor(op, "cell", cell, {ScalarType::Float}, {problem.total, columns},
               "[total, directions * width]");
  check_tensor(op, "activated", activated, {type}, {problem.total, 4 * columns},
               "[total, directions * 4 * width]");
  grad_hidden = as_contiguous(grad_hidden);
  cell = as_contiguous(cell);
  activated = as_contiguous(activated);
  Tensor grad_gates = torch::stable::empty({problem.total, 4 * columns}, type);
  Tensor grad_initial_hidden = torch::stable::empty({problem.batch, columns}, type);
  Tensor grad_initial_cell = torch::stable::empty({problem.batch, columns}, ScalarType::Float);
  const LstmGradient gradient{grad_hidden.const_data_ptr(),
                              cell.const_data_ptr<float>(),
                              activated.const_data_ptr(),
                              grad_gates.mutable_data_ptr(),
                              grad_initial_hidden.mutable_data_ptr(),
                              grad_initial_cell.mutable_data_ptr<float>()};
  const RaggedLstmKernels& kernels = active_ragged_lstm_kernels();
  const Parallel parallel = torch_parallel();
  const Scratch scratch(kernels.backward_scratch_bytes(problem, parallel.threads));
  kernels.backward(problem, gradient, scratch.data(), parallel);
  return {grad_gates, grad_initial_hidden, grad_initial_cell};
}

}  // namespace
}  // namespace vleff

STABLE_TORCH_LIBRARY_IMPL(vleff, CPU, library) {
  library.impl("ragged_lstm", TORCH_BOX(&vleff::forward));
  library.impl("ragged_lstm_backward", TORCH_BOX(&vleff::backward));
}
