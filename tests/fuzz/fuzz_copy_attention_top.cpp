// Random problems for the kernel of copy_attention_top. Levels round differently, so words that are about
// equally likely may change places: only their log-probabilities are compared.
#include "fuzzing.h"
#include "kernels/cpu/copy_attention_top.h"

VLEFF_DISPATCH(CopyAttentionTopKernels, copy_attention_top_kernels)

namespace {

using namespace vleff;
using Block = std::unique_ptr<char[]>;

struct Case : RandomCase {
  CopyTopProblem problem{};
  int64_t rows;
  std::vector<int32_t> query_offsets, source_offsets[copy_sources];
  std::unique_ptr<int32_t[]> ids[copy_sources];
  Block queries, keys[copy_sources], gate, hidden, weight, bias;

  explicit Case(uint64_t seed) : RandomCase(seed) {
    CopyProblem& copy = problem.copy;
    copy.type = static_cast<DataType>(below(3));
    copy.batch = below(5);
    copy.width = 1 + below(70);
    copy.scale = 1.0f / std::sqrt(static_cast<float>(copy.width));
    const int64_t words = 1 + below(one_in(2) ? 130 : 700), width = 1 + below(70);
    problem.extended_words = words + below(30);
    problem.count = below(15);
    problem.watched = below(words);
    query_offsets = offsets(copy.batch, one_in(4) ? 300 : 20);
    rows = query_offsets.back();
    copy.query_offsets = query_offsets.data();
    copy.most_queries = longest_sample(query_offsets);
    queries = numbers(copy.type, rows * copy.width);
    copy.queries = queries.get();
    for (int source = 0; source < copy_sources; ++source) {
      source_offsets[source] = offsets(copy.batch, 100);
      const int64_t total = source_offsets[source].back();
      keys[source] = numbers(copy.type, total * copy.width);
      ids[source] = RandomCase::words(total, problem.extended_words);
      copy.sources[source] = {keys[source].get(), ids[source].get(), source_offsets[source].data(),
                              longest_sample(source_offsets[source])};
    }
    gate = numbers(copy.type, rows * (1 + copy_sources));
    copy.gate_logits = gate.get();
    hidden = numbers(copy.type, rows * width);
    weight = numbers(copy.type, words * width);
    const bool has_bias = one_in(2);
    bias = numbers(copy.type, has_bias ? words : 0);
    problem.vocabulary = {
        copy.type, rows, width, words, hidden.get(), weight.get(), has_bias ? bias.get() : nullptr, nullptr};
  }

  Tensors run(int64_t threads) const {
    const CopyAttentionTopKernels& kernels = active_copy_attention_top_kernels();
    const int64_t size = rows * problem.count;
    Block log_probs = block(size * 4), watched = block(rows * 4);
    std::unique_ptr<int64_t[]> words(new int64_t[size]);
    auto memory = scratch(kernels.scratch_bytes(problem, threads));
    kernels.run(
        problem,
        {reinterpret_cast<float*>(log_probs.get()), words.get(), reinterpret_cast<float*>(watched.get())},
        memory.get(), {threads, run_workers});
    for (int64_t i = 0; i < size; ++i)
      if (words[i] < 0 || words[i] >= problem.extended_words) std::abort();
    Tensors tensors;
    add(tensors, "log_probs", log_probs, DataType::float32, size);
    add(tensors, "watched", watched, DataType::float32, rows);
    return tensors;
  }
};

}  // namespace

void check(uint64_t seed) {
  const Case c(seed);
  check_levels(c.problem.copy.type, seed, [&](int64_t threads) { return c.run(threads); });
}
