// Random problems for the kernels of copy_attention: targets with and without coverage, and rows of all
// words.
#include "fuzzing.h"
#include "kernels/cpu/copy_attention.h"

VLEFF_DISPATCH(CopyAttentionKernels, copy_attention_kernels)

namespace {

using namespace vleff;
using Block = std::unique_ptr<char[]>;

struct Case : RandomCase {
  CopyProblem problem{};
  int64_t rows, words, extended_words;
  bool coverage;
  std::vector<int32_t> query_offsets, source_offsets[copy_sources];
  std::unique_ptr<int32_t[]> ids[copy_sources], targets;
  Block queries, keys[copy_sources], gate, generate, vocabulary, grad, coverage_grad;

  explicit Case(uint64_t seed) : RandomCase(seed) {
    problem.type = static_cast<DataType>(below(3));
    problem.batch = below(5);
    problem.width = one_in(2) ? 1 + below(300) : 8 << below(5);
    problem.scale = 1.0f / std::sqrt(static_cast<float>(problem.width));
    words = 1 + below(one_in(3) ? 3000 : 100);
    extended_words = words + below(30);
    coverage = one_in(2);
    query_offsets = offsets(problem.batch, 70);
    rows = query_offsets.back();
    problem.query_offsets = query_offsets.data();
    problem.most_queries = longest_sample(query_offsets);
    queries = numbers(problem.type, rows * problem.width);
    problem.queries = queries.get();
    for (int source = 0; source < copy_sources; ++source) {
      source_offsets[source] = offsets(problem.batch, 300);
      const int64_t total = source_offsets[source].back();
      keys[source] = numbers(problem.type, total * problem.width);
      ids[source] = RandomCase::words(total, extended_words);
      problem.sources[source] = {keys[source].get(), ids[source].get(), source_offsets[source].data(),
                                 longest_sample(source_offsets[source])};
    }
    gate = numbers(problem.type, rows * (1 + copy_sources));
    problem.gate_logits = gate.get();
    targets = RandomCase::words(rows, extended_words);
    generate = block(rows * 4);
    for (int64_t row = 0; row < rows; ++row) {
      const float log_prob = targets[row] < words ? -std::fabs(3 * number()) : -INFINITY;
      put(generate.get(), DataType::float32, row, log_prob);
      if (one_in(20)) targets[row] = -1;
    }
    vocabulary = numbers(problem.type, rows * words);
    grad = numbers(DataType::float32, rows);
    coverage_grad = numbers(DataType::float32, rows);
  }

  Tensors run(int64_t threads) const {
    const CopyAttentionKernels& kernels = active_copy_attention_kernels();
    const Parallel parallel{threads, run_workers};
    const auto floats = [](const Block& data) { return reinterpret_cast<float*>(data.get()); };
    const CopyTargets of_targets{floats(generate), targets.get()};
    Block log_probs = block(rows * 4), loss = block(rows * 4), statistics = block(rows * copy_sources * 16);
    auto* copy_statistics = reinterpret_cast<CopyStatistics*>(statistics.get());
    {
      auto memory = scratch(threads * kernels.forward_scratch_bytes(problem));
      kernels.forward(problem, of_targets,
                      {floats(log_probs), copy_statistics, coverage ? floats(loss) : nullptr}, memory.get(),
                      parallel);
    }
    const int64_t size = size_of(problem.type);
    Block grad_queries = block(rows * problem.width * size), grad_keys[copy_sources];
    for (int source = 0; source < copy_sources; ++source)
      grad_keys[source] = block(source_offsets[source].back() * problem.width * size);
    Block grad_gate = block(rows * (1 + copy_sources) * size), grad_generate = block(rows * 4);
    {
      auto memory = scratch(threads * kernels.backward_scratch_bytes(problem, coverage));
      kernels.backward(problem, of_targets,
                       {floats(grad),
                        coverage ? floats(coverage_grad) : nullptr,
                        floats(log_probs),
                        copy_statistics,
                        grad_queries.get(),
                        {grad_keys[0].get(), grad_keys[1].get()},
                        grad_gate.get(),
                        floats(grad_generate)},
                       memory.get(), parallel);
    }
    Block all = block(rows * extended_words * 4);
    {
      auto memory = scratch(threads * kernels.rows_scratch_bytes(problem));
      kernels.rows(problem, {words, extended_words, vocabulary.get(), floats(all)}, memory.get(), parallel);
    }
    Tensors tensors;
    add(tensors, "log_probs", log_probs, DataType::float32, rows);
    if (coverage) add(tensors, "coverage_loss", loss, DataType::float32, rows);
    add(tensors, "grad_queries", grad_queries, problem.type, rows * problem.width);
    for (int source = 0; source < copy_sources; ++source)
      add(tensors, "grad_keys", grad_keys[source], problem.type,
          source_offsets[source].back() * problem.width);
    add(tensors, "grad_gate", grad_gate, problem.type, rows * (1 + copy_sources));
    add(tensors, "grad_generate", grad_generate, DataType::float32, rows);
    add(tensors, "rows", all, DataType::float32, rows * extended_words);
    return tensors;
  }
};

}  // namespace

void check(uint64_t seed) {
  const Case c(seed);
  check_levels(c.problem.type, seed, [&](int64_t threads) { return c.run(threads); });
}
