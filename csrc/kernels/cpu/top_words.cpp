#include "top_words.h"

#include "largest_words.h"
#include "tasks.h"

// A row is read once. Most vectors hold nothing above the least of the largest values so far, and a few
// comparisons tell.
namespace vleff::VLEFF_ISA {
namespace {

constexpr int64_t vectors = 4;

void run_row(const TopWordsProblem& problem, int64_t row) {
  const float* values = problem.values + row * problem.words;
  const LargestWords<int64_t> largest{problem.top_values + row * problem.count,
                                      problem.top_words + row * problem.count, problem.count};
  largest.clear();
  int64_t word = 0;
  for (; word + vectors * lanes <= problem.words; word += vectors * lanes) {
    Float top = broadcast(-infinity);  // the second operand: what maximum gives where the first is NaN
    for (int64_t vector = 0; vector < vectors; ++vector)
      top = maximum(load(values + word + vector * lanes), top);
    if (!any_above(top, broadcast(largest.least()))) continue;
    for (int64_t lane = 0; lane < vectors * lanes; ++lane) largest.add(values[word + lane], word + lane);
  }
  for (; word < problem.words; ++word) largest.add(values[word], word);
}

void run(const TopWordsProblem& problem, const Parallel& parallel) {
  if (problem.count == 0) return;
  for_each_task(parallel, problem.rows, [&](int64_t, int64_t row, int64_t) { run_row(problem, row); });
}

}  // namespace

extern const TopWordsKernels top_words_kernels = {run};

}  // namespace vleff::VLEFF_ISA
