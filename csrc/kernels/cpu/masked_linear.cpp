#include "masked_linear.h"

#include "masked_linear_chunks.h"
#include "masked_linear_few_tokens.h"
#include "masked_linear_grad_values.h"

namespace vleff::VLEFF_ISA {
namespace {

bool ascend(const int32_t* numbers, int64_t count, int64_t last) {
  int32_t descents = 0;  // its sign
  for (int64_t i = 0; i + 1 < count; ++i) descents |= numbers[i + 1] < numbers[i] ? -1 : 0;
  return descents == 0 && numbers[0] == 0 && numbers[count - 1] == last;
}

// Memory of one worker: a panel of the input, with room for any column number, and the sums of a chunk.
int64_t scratch_bytes(const MaskedStructure& weight, int64_t tokens) {
  const int64_t width = round_up(min(tokens, panel_tokens), 2 * lanes);
  return (weight.columns + largest_column_block + largest_row_chunk) * max(width, most_few_tokens) *
         sizeof(float);
}

// The epilogue of the features from `row` on of the tokens from `token` on.
template <class T>
Epilogue<T> epilogue(const MaskedLinearProblem& problem, int64_t token, int64_t row) {
  return {problem.bias, problem.activation, problem.residual, problem.weight.rows, token, row};
}

template <class T>
T* out_at(const MaskedLinearProblem& problem, int64_t token, int64_t row) {
  return static_cast<T*>(problem.out) + token * problem.weight.rows + row;
}

// All tokens, which are few, of the features of chunks [chunk, end)
template <class T>
void run_few_tokens(const MaskedLinearProblem& problem, int64_t chunk, int64_t end, char* scratch) {
  using Element = typename FeatureOf<T>::Element;
  const MaskedStructure& weight = problem.weight;
  const int64_t blocks = blocks_of(weight), width = weight.columns + largest_column_block;
  float* sums = reinterpret_cast<float*>(scratch);  // [tokens, largest_row_chunk]
  Element* features = reinterpret_cast<Element*>(sums + most_few_tokens * largest_row_chunk);
  for (int64_t token = 0; token < problem.tokens; ++token) {
    copy_features(static_cast<const T*>(problem.input) + token * weight.columns, weight.columns,
                  features + token * width);
    for (int64_t i = weight.columns; i < width; ++i) features[token * width + i] = {};
  }
  for (; chunk < end; ++chunk) {
    const int64_t row = chunk * weight.row_chunk, rows = min(weight.row_chunk, weight.rows - row);
    for (int64_t block = 0; block < blocks; ++block) {
      const auto elements = block_at<T>(weight, row * blocks + block * rows, rows,
                                        problem.steps.block_columns, problem.steps.values);
      for (int64_t token = 0; token < problem.tokens; ++token)
        multiply_block_with_token(elements, weight.column_block,
                                  features + token * width + block * weight.column_block, block == 0,
                                  sums + token * largest_row_chunk);
    }
    const Epilogue<T> finish = epilogue<T>(problem, 0, row);
    for (int64_t token = 0; token < problem.tokens; ++token)
      for (int64_t feature = 0; feature < rows; feature += lanes) {
        const int64_t count = min(lanes, rows - feature);
        const Float sum = load(sums + token * largest_row_chunk + feature);
        store_first(out_at<T>(problem, token, row) + feature, finish(sum, token, feature, count), count);
      }
  }
}

// tokens [token, token + tokens) of the features of chunks [chunk, end)
template <int vectors, class T>
void run_panel(const MaskedLinearProblem& problem, int64_t token, int64_t tokens, int64_t chunk, int64_t end,
               char* scratch) {
  using Element = typename PanelOf<T>::Element;
  constexpr int64_t width = vectors * lanes;
  const MaskedStructure& weight = problem.weight;
  float* sums = reinterpret_cast<float*>(scratch);
  Element* panel = reinterpret_cast<Element*>(sums + largest_row_chunk * width);
  pack_panel(static_cast<const T*>(problem.input) + token * weight.columns, weight.columns, tokens,
             weight.columns, width, panel);
  for (; chunk < end; ++chunk) {
    const int64_t row = chunk * weight.row_chunk, rows = min(weight.row_chunk, weight.rows - row);
    multiply_chunk<vectors, T>(weight, problem.values, row, rows, panel, sums);
    unpack_panel(sums, width, tokens, rows, out_at<T>(problem, token, row), weight.rows,
                 epilogue<T>(problem, token, row));
  }
}

// Workers share the tokens, or, where these are few, the features.
struct Work {
  const MaskedLinearProblem& problem;
  char* scratch;
  int64_t token_parts, chunk_parts;
};

// The first chunk of a part, so that all parts have about as many elements.
int64_t first_chunk(const MaskedStructure& weight, int64_t part, int64_t parts) {
  const int64_t chunks = chunks_of(weight), blocks = blocks_of(weight);
  if (part == parts) return chunks;
  const int64_t before = weight.starts[weight.rows * blocks] * part / parts;
  int64_t chunk = 0;
  while (chunk < chunks && weight.starts[chunk * weight.row_chunk * blocks] < before) ++chunk;
  return chunk;
}

template <class T>
void run_worker(void* context, int64_t worker) {
  const Work& work = *static_cast<const Work*>(context);
  const MaskedLinearProblem& problem = work.problem;
  char* scratch = work.scratch + worker * scratch_bytes(problem.weight, problem.tokens);
  const int64_t token_part = worker % work.token_parts, chunk_part = worker / work.token_parts;
  const int64_t chunk = first_chunk(problem.weight, chunk_part, work.chunk_parts);
  const int64_t last_chunk = first_chunk(problem.weight, chunk_part + 1, work.chunk_parts);
  if (problem.steps.values && problem.tokens <= most_few_tokens)
    return run_few_tokens<T>(problem, chunk, last_chunk, scratch);
  const int64_t end = first_token<T>(problem.tokens, token_part + 1, work.token_parts);
  for (int64_t token = first_token<T>(problem.tokens, token_part, work.token_parts); token < end;
       token += panel_tokens) {
    const int64_t tokens = min(panel_tokens, end - token);
    with_panel_vectors<T>(tokens, [&](auto vectors) {
      run_panel<vectors.value, T>(problem, token, tokens, chunk, last_chunk, scratch);
    });
  }
}

void run(const MaskedLinearProblem& problem, void* scratch, const Parallel& parallel) {
  const int64_t panels = max(1, problem.tokens / panel_tokens);
  const int64_t token_parts = min(parallel.threads, panels);
  const int64_t chunk_parts = max(1, min(parallel.threads / token_parts, chunks_of(problem.weight)));
  Work work{problem, static_cast<char*>(scratch), token_parts, chunk_parts};
  const auto body = problem.type == DataType::float32    ? run_worker<float>
                    : problem.type == DataType::bfloat16 ? run_worker<BFloat16>
                                                         : run_worker<Float16>;
  parallel.run(parallel, token_parts * chunk_parts, body, &work);
}

}  // namespace

extern const MaskedLinearKernels masked_linear_kernels = {ascend, scratch_bytes, run,
                                                          grad_values_scratch_bytes, grad_values};

}  // namespace vleff::VLEFF_ISA
