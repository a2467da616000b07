// Random problems for the kernels of ragged_lstm.
#include <numeric>

#include "fuzzing.h"
#include "kernels/cpu/ragged_lstm.h"

VLEFF_DISPATCH(RaggedLstmKernels, ragged_lstm_kernels)

namespace {

using namespace vleff;
using Block = std::unique_ptr<char[]>;

struct Case : RandomCase {
  LstmProblem problem{};
  std::vector<int32_t> offsets, order;
  bool has_initial_hidden, has_initial_cell;
  Block gates, weight, initial_hidden, initial_cell, grad_hidden;

  explicit Case(uint64_t seed) : RandomCase(seed) {
    problem.type = static_cast<DataType>(below(3));
    problem.batch = below(20);
    problem.width = 1 + below(70);
    problem.directions = 1 + below(2);
    offsets = this->RandomCase::offsets(problem.batch, 20);
    problem.total = offsets.back();
    order.resize(problem.batch);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [this](int32_t first, int32_t second) {
      return offsets[first + 1] - offsets[first] > offsets[second + 1] - offsets[second];
    });
    const int64_t columns = problem.directions * problem.width;
    gates = numbers(problem.type, problem.total * 4 * columns);
    weight = numbers(problem.type, 4 * columns * problem.width);
    for (int64_t i = 0; i < 4 * columns * problem.width; ++i)
      put(weight.get(), problem.type, i, as_float(weight.get(), problem.type, i) / std::sqrt(problem.width));
    has_initial_hidden = one_in(2);
    has_initial_cell = one_in(2);
    initial_hidden = numbers(problem.type, has_initial_hidden ? problem.batch * columns : 0);
    initial_cell = numbers(DataType::float32, has_initial_cell ? problem.batch * columns : 0);
    grad_hidden = numbers(problem.type, problem.total * columns);
    problem.offsets = offsets.data();
    problem.order = order.data();
    problem.gates = gates.get();
    problem.weight = weight.get();
    problem.initial_hidden = has_initial_hidden ? initial_hidden.get() : nullptr;
    problem.initial_cell = has_initial_cell ? reinterpret_cast<float*>(initial_cell.get()) : nullptr;
  }

  Tensors run(int64_t threads) const {
    const RaggedLstmKernels& kernels = active_ragged_lstm_kernels();
    const Parallel parallel{threads, run_workers};
    const int64_t size = size_of(problem.type), columns = problem.directions * problem.width;
    const int64_t states = problem.total * columns, initial = problem.batch * columns;
    Block hidden = block(states * size), cell = block(states * 4), activated = block(4 * states * size);
    auto* cells = reinterpret_cast<float*>(cell.get());
    {
      auto memory = scratch(kernels.forward_scratch_bytes(problem, threads));
      kernels.forward(problem, {hidden.get(), cells, activated.get()}, memory.get(), parallel);
    }
    Block grad_gates = block(4 * states * size), grad_initial_hidden = block(initial * size),
          grad_initial_cell = block(initial * 4);
    {
      auto memory = scratch(kernels.backward_scratch_bytes(problem, threads));
      kernels.backward(problem,
                       {grad_hidden.get(), cells, activated.get(), grad_gates.get(),
                        grad_initial_hidden.get(), reinterpret_cast<float*>(grad_initial_cell.get())},
                       memory.get(), parallel);
    }
    Tensors tensors;
    add(tensors, "hidden", hidden, problem.type, states);
    add(tensors, "cell", cell, DataType::float32, states);
    add(tensors, "activated", activated, problem.type, 4 * states);
    add(tensors, "grad_gates", grad_gates, problem.type, 4 * states);
    add(tensors, "grad_initial_hidden", grad_initial_hidden, problem.type, initial);
    add(tensors, "grad_initial_cell", grad_initial_cell, DataType::float32, initial);
    return tensors;
  }
};

}  // namespace

void check(uint64_t seed) {
  const Case c(seed);
  check_levels(c.problem.type, seed, [&](int64_t threads) { return c.run(threads); });
}
