// Random problems for the kernels of attention_distillation.
#include "fuzzing.h"
#include "kernels/cpu/attention_distillation.h"

VLEFF_DISPATCH(AttentionDistillationKernels, attention_distillation_kernels)

namespace {

using namespace vleff;
using Block = std::unique_ptr<char[]>;

struct Case : RandomCase {
  AttentionDistillationProblem problem{};
  std::vector<int32_t> q_offsets, k_offsets;
  std::vector<Block> blocks;
  Block grad;

  explicit Case(uint64_t seed) : RandomCase(seed) {
    problem.type = static_cast<DataType>(below(3));
    problem.batch = below(5);
    problem.heads = 1 + below(4);
    q_offsets = offsets(problem.batch, 150);
    k_offsets = offsets(problem.batch, 300);
    problem.q_offsets = q_offsets.data();
    problem.k_offsets = k_offsets.data();
    problem.total_q = q_offsets.back();
    problem.total_k = k_offsets.back();
    for (DistillationSide* side : {&problem.teacher, &problem.student}) {
      side->head_dim = one_in(2) ? 1 + below(256) : 8 << below(5);
      side->scale = one_in(8) ? -0.3f : 1.0f / std::sqrt(static_cast<float>(side->head_dim));
      side->q = rows(problem.total_q, side->head_dim);
      side->k = rows(problem.total_k, side->head_dim);
    }
    grad = numbers(DataType::float32, problem.total_q * problem.heads);
  }

  // The last row ends with the block: rows of a wider tensor, of which this operand is the last slice.
  HeadRows rows(int64_t count, int64_t head_dim) {
    const int64_t width = problem.heads * head_dim, gap = one_in(2) ? 0 : below(40);
    blocks.push_back(numbers(problem.type, count * (width + gap)));
    const int64_t skipped = count ? gap * size_of(problem.type) : 0;
    return {blocks.back().get() + skipped, width + gap, head_dim};
  }

  Tensors run(int64_t threads) const {
    const AttentionDistillationKernels& kernels = active_attention_distillation_kernels();
    const Parallel parallel{threads, run_workers};
    const int64_t queries = problem.total_q * problem.heads, max_k = longest_sample(k_offsets);
    const int64_t width = problem.heads * problem.student.head_dim;
    Block divergence = block(queries * 4), statistics = block(queries * 16);
    {
      auto memory = scratch(threads * kernels.forward_scratch_bytes(problem, max_k));
      kernels.forward(problem,
                      {reinterpret_cast<float*>(divergence.get()),
                       reinterpret_cast<SoftmaxStatistics*>(statistics.get())},
                      max_k, memory.get(), parallel);
    }
    Block grad_q = block(problem.total_q * width * size_of(problem.type));
    Block grad_k = block(problem.total_k * width * size_of(problem.type));
    {
      auto memory = scratch(threads * kernels.backward_scratch_bytes(problem, max_k));
      kernels.backward(
          problem,
          {reinterpret_cast<const float*>(grad.get()),
           reinterpret_cast<const SoftmaxStatistics*>(statistics.get()), grad_q.get(), grad_k.get()},
          max_k, memory.get(), parallel);
    }
    Tensors tensors;
    add(tensors, "divergence", divergence, DataType::float32, queries);
    add(tensors, "grad_q", grad_q, problem.type, problem.total_q * width);
    add(tensors, "grad_k", grad_k, problem.type, problem.total_k * width);
    return tensors;
  }
};

}  // namespace

void check(uint64_t seed) {
  const Case c(seed);
  check_levels(c.problem.type, seed, [&](int64_t threads) { return c.run(threads); });
}
