#include "masked_feed_forward.h"

#include "masked_linear_chunks.h"

namespace vleff::VLEFF_ISA {
namespace {

// Memory of one worker: the sums of a chunk, and panels of input and hidden features with room for any
// column.
int64_t scratch_bytes(const MaskedStructure& first, const MaskedStructure& second) {
  return (largest_row_chunk + first.columns + second.columns + 2 * largest_column_block) * panel_tokens *
         sizeof(float);
}

// `count` hidden features of all tokens of a panel, from the sums [count][width] of the first product.
template <class T, int64_t width>
void store_hidden(float* sums, int64_t count, const T* bias, Activation activation, float* hidden) {
  for (int64_t feature = 0; feature < count; ++feature)
    for (int64_t token = 0; token < width; token += lanes) {
      Float value = load(sums + feature * width + token);
      if (bias) value += broadcast(widen_one(bias[feature]));
      value = activate(value, activation);
      if constexpr (sizeof(T) < sizeof(float)) value = widen(narrow(value, T{}), T{});
      store(hidden + feature * width + token, value);
    }
}
#if defined(__AVX512BF16__)
template <class T, int64_t width>
void store_hidden(float* sums, int64_t count, const T* bias, Activation activation, BFloat16* hidden) {
  for (int64_t feature = 0; feature < count; ++feature)
    for (int64_t token = 0; token < width; token += 2 * lanes) {
      const float* source = sums + feature * width + token;
      const Float shift = bias ? broadcast(widen_one(bias[feature])) : Float{};
      const auto finished = [&](Float value) {
        return narrow(activate(bias ? value + shift : value, activation), T{});
      };
      store_interleaved(hidden + feature * width + token, finished(load(source)),
                        finished(load(source + lanes)));
    }
}
#endif

template <int vectors, class T>
void run_panel(const MaskedFeedForwardProblem& problem, int64_t token, int64_t tokens, char* scratch) {
  using Element = typename PanelOf<T>::Element;
  constexpr int64_t width = vectors * lanes;
  const MaskedStructure &first = problem.first, &second = problem.second;
  float* sums = reinterpret_cast<float*>(scratch);
  Element* panel = reinterpret_cast<Element*>(sums + largest_row_chunk * width);
  Element* hidden = panel + (first.columns + largest_column_block) * width;
  pack_panel(static_cast<const T*>(problem.input) + token * first.columns, first.columns, tokens,
             first.columns, width, panel);
  for (int64_t row = 0; row < first.rows; row += first.row_chunk) {
    const int64_t rows = min(first.row_chunk, first.rows - row);
    multiply_chunk<vectors, T>(first, problem.first_values, row, rows, panel, sums);
    const T* bias = problem.first_bias ? static_cast<const T*>(problem.first_bias) + row : nullptr;
    store_hidden<T, width>(sums, rows, bias, problem.activation, hidden + row * width);
  }
  for (int64_t row = 0; row < second.rows; row += second.row_chunk) {
    const int64_t rows = min(second.row_chunk, second.rows - row);
    multiply_chunk<vectors, T>(second, problem.second_values, row, rows, hidden, sums);
    const Epilogue<T> finish{
        problem.second_bias, Activation::none, problem.residual, second.rows, token, row};
    unpack_panel(sums, width, tokens, rows, static_cast<T*>(problem.out) + token * second.rows + row,
                 second.rows, finish);
  }
}

// Workers share the tokens.
struct Work {
  const MaskedFeedForwardProblem& problem;
  char* scratch;
  int64_t parts;
};

template <class T>
void run_worker(void* context, int64_t worker) {
  const Work& work = *static_cast<const Work*>(context);
  const MaskedFeedForwardProblem& problem = work.problem;
  char* scratch = work.scratch + worker * scratch_bytes(problem.first, problem.second);
  const int64_t end = first_token<T>(problem.tokens, worker + 1, work.parts);
  for (int64_t token = first_token<T>(problem.tokens, worker, work.parts); token < end;
       token += panel_tokens) {
    const int64_t tokens = min(panel_tokens, end - token);
    with_panel_vectors<T>(
        tokens, [&](auto vectors) { run_panel<vectors.value, T>(problem, token, tokens, scratch); });
  }
}

void run(const MaskedFeedForwardProblem& problem, void* scratch, const Parallel& parallel) {
  Work work{problem, static_cast<char*>(scratch), parallel.threads};
  const auto body = problem.type == DataType::float32    ? run_worker<float>
                    : problem.type == DataType::bfloat16 ? run_worker<BFloat16>
                                                         : run_worker<Float16>;
  parallel.run(parallel, parallel.threads, body, &work);
}

}  // namespace

extern const MaskedFeedForwardKernels masked_feed_forward_kernels = {scratch_bytes, run};

}  // namespace vleff::VLEFF_ISA
