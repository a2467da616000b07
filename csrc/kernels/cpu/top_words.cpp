#include "top_words.h"

#include "tasks.h"

// A row is read once. Most vectors hold nothing above the least of the largest values so far, and a few
// comparisons tell.
namespace vleff::VLEFF_ISA {
namespace {

constexpr int64_t vectors = 4;

// The largest values so far, in the outputs' memory.
struct Largest {
  float* values;
  int64_t* words;
  int64_t count;
  float least = -infinity;

  void add(float value, int64_t word) {
    if (!(value > least)) return;
    int64_t place = count - 1;
    for (; place > 0 && value > values[place - 1]; --place) {
      values[place] = values[place - 1];
      words[place] = words[place - 1];
    }
    values[place] = value;
    words[place] = word;
    least = values[count - 1];
  }
};

void run_row(const TopWordsProblem& problem, int64_t row) {
  const float* values = problem.values + row * problem.words;
  Largest largest{problem.top_values + row * problem.count, problem.top_words + row * problem.count,
                  problem.count};
  for (int64_t place = 0; place < problem.count; ++place) {
    largest.values[place] = -infinity;
    largest.words[place] = 0;
  }
  int64_t word = 0;
  for (; word + vectors * lanes <= problem.words; word += vectors * lanes) {
    Float top = broadcast(-infinity);  // the second operand: what maximum gives where the first is NaN
    for (int64_t vector = 0; vector < vectors; ++vector)
      top = maximum(load(values + word + vector * lanes), top);
    if (!(reduce_maximum(top) > largest.least)) continue;
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
