// Random problems for the kernel of top_words.
#include "fuzzing.h"
#include "kernels/cpu/top_words.h"

VLEFF_DISPATCH(TopWordsKernels, top_words_kernels)

namespace {

using namespace vleff;
using Block = std::unique_ptr<char[]>;

struct Case : RandomCase {
  TopWordsProblem problem{};
  Block values;

  explicit Case(uint64_t seed) : RandomCase(seed) {
    problem.rows = below(20);
    problem.words = below(one_in(2) ? 70 : 700);
    problem.count = below(12);
    values = numbers(DataType::float32, problem.rows * problem.words);
    for (int64_t i = 0; i < problem.rows * problem.words; ++i) {
      if (one_in(4)) put(values.get(), DataType::float32, i, one_in(2) ? 1.5f : -INFINITY);
      if (one_in(50)) put(values.get(), DataType::float32, i, NAN);
    }
    problem.values = reinterpret_cast<const float*>(values.get());
  }

  Tensors run(int64_t threads) const {
    const int64_t size = problem.rows * problem.count;
    Block top_values = block(size * 4);
    std::unique_ptr<int64_t[]> top_words(new int64_t[size]);
    TopWordsProblem whole = problem;
    whole.top_values = reinterpret_cast<float*>(top_values.get());
    whole.top_words = top_words.get();
    active_top_words_kernels().run(whole, {threads, run_workers});
    Tensors tensors;
    add(tensors, "values", top_values, DataType::float32, size);
    tensors.emplace_back(std::vector<float>(top_words.get(), top_words.get() + size), "words");
    return tensors;
  }
};

}  // namespace

void check(uint64_t seed) {
  const Case c(seed);
  check_levels(DataType::float32, seed, [&](int64_t threads) { return c.run(threads); });
}
