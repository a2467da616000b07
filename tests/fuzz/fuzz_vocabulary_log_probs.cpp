// Random problems for the kernels of vocabulary_log_probs.
#include "fuzzing.h"
#include "kernels/cpu/vocabulary_log_probs.h"

VLEFF_DISPATCH(VocabularyLogProbsKernels, vocabulary_log_probs_kernels)

namespace {

using namespace vleff;
using Block = std::unique_ptr<char[]>;

struct Case : RandomCase {
  VocabularyProblem problem{};
  bool has_bias;
  Block hidden, weight, bias, grad;
  std::unique_ptr<int32_t[]> targets;

  explicit Case(uint64_t seed) : RandomCase(seed) {
    problem.type = static_cast<DataType>(below(3));
    problem.rows = one_in(10) ? 0 : 1 + below(one_in(4) ? 600 : 40);
    problem.width = 1 + below(100);
    problem.words = 1 + below(one_in(2) ? 130 : 700);
    hidden = numbers(problem.type, problem.rows * problem.width);
    weight = numbers(problem.type, problem.words * problem.width);
    has_bias = one_in(2);
    bias = numbers(problem.type, has_bias ? problem.words : 0);
    targets = words(problem.rows, problem.words);
    for (int64_t row = 0; row < problem.rows; ++row)
      if (one_in(10)) targets[row] = -1;
    grad = numbers(DataType::float32, problem.rows);
    problem.hidden = hidden.get();
    problem.weight = weight.get();
    problem.bias = has_bias ? bias.get() : nullptr;
    problem.targets = targets.get();
  }

  Tensors run(int64_t threads) const {
    const VocabularyLogProbsKernels& kernels = active_vocabulary_log_probs_kernels();
    const Parallel parallel{threads, run_workers};
    const auto floats = [](const Block& data) { return reinterpret_cast<float*>(data.get()); };
    Block log_probs = block(problem.rows * 4), statistics = block(problem.rows * 8);
    auto* softmax = reinterpret_cast<SoftmaxStatistics*>(statistics.get());
    {
      auto memory = scratch(kernels.forward_scratch_bytes(problem, threads));
      kernels.forward(problem, {floats(log_probs), softmax}, memory.get(), parallel);
    }
    const int64_t size = size_of(problem.type);
    Block grad_hidden = block(problem.rows * problem.width * size);
    Block grad_weight = block(problem.words * problem.width * size);
    Block grad_bias = block(has_bias ? problem.words * size : 0);
    {
      auto memory = scratch(kernels.backward_scratch_bytes(problem, threads));
      kernels.backward(
          problem,
          {floats(grad), softmax, grad_hidden.get(), grad_weight.get(), has_bias ? grad_bias.get() : nullptr},
          memory.get(), parallel);
    }
    Tensors tensors;
    add(tensors, "log_probs", log_probs, DataType::float32, problem.rows);
    add(tensors, "grad_hidden", grad_hidden, problem.type, problem.rows * problem.width);
    add(tensors, "grad_weight", grad_weight, problem.type, problem.words * problem.width);
    if (has_bias) add(tensors, "grad_bias", grad_bias, problem.type, problem.words);
    return tensors;
  }
};

}  // namespace

void check(uint64_t seed) {
  const Case c(seed);
  check_levels(c.problem.type, seed, [&](int64_t threads) { return c.run(threads); });
}
