#include "masked_linear.h"

#include "activation_functions.h"
#include "masked_linear_grad_values.h"
#include "masked_linear_products.h"

namespace vleff::VLEFF_ISA {
namespace {

int64_t blocks_of(const MaskedStructure& weight) {
  return (weight.columns + weight.column_block - 1) / weight.column_block;
}

int64_t chunks_of(const MaskedStructure& weight) {
  return (weight.rows + weight.row_chunk - 1) / weight.row_chunk;
}

// Memory of one worker: a panel of the input, with room for any column number, and the sums of a chunk.
int64_t scratch_bytes(const MaskedStructure& weight) {
  return (weight.columns + largest_column_block + largest_row_chunk) * panel_tokens * sizeof(float);
}

template <class T>
void write_chunk(const MaskedLinearProblem& problem, int64_t token, int64_t tokens, int64_t row, int64_t rows,
                 int64_t width, const float* sums) {
  const int64_t stride = problem.weight.rows, offset = token * stride + row;
  const T* bias = problem.bias ? static_cast<const T*>(problem.bias) + row : nullptr;
  const T* residual = problem.residual ? static_cast<const T*>(problem.residual) + offset : nullptr;
  const auto finish = [&](Float sum, int64_t index, int64_t feature, int64_t count) {
    if (bias) sum += load_first(bias + feature, count);
    if (problem.activation != Activation::none) sum = activate(sum, problem.activation);
    if (residual) sum += load_first(residual + index * stride + feature, count);
    return sum;
  };
  unpack_panel(sums, width, tokens, rows, static_cast<T*>(problem.out) + offset, stride, finish);
}

// tokens [token, token + tokens) of the features of chunks [chunk, end)
template <int vectors, class T>
void run_panel(const MaskedLinearProblem& problem, int64_t token, int64_t tokens, int64_t chunk, int64_t end,
               char* scratch) {
  using Element = typename PanelOf<T>::Element;
  constexpr int64_t width = vectors * lanes;
  const MaskedStructure& weight = problem.weight;
  const int64_t blocks = blocks_of(weight);
  float* sums = reinterpret_cast<float*>(scratch);
  Element* panel = reinterpret_cast<Element*>(sums + largest_row_chunk * width);
  pack_panel(static_cast<const T*>(problem.input) + token * weight.columns, weight.columns, tokens,
             weight.columns, width, panel);
  for (; chunk < end; ++chunk) {
    const int64_t row = chunk * weight.row_chunk, rows = min(weight.row_chunk, weight.rows - row);
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t place = row * blocks + block * rows;
      const bool at_end = weight.starts[place + rows] + read_ahead > weight.starts[weight.rows * blocks];
      multiply_block<vectors>(Block<T>{rows, weight.starts + place, weight.order + place,
                                       weight.block_columns, static_cast<const T*>(problem.values), at_end},
                              panel + block * weight.column_block * width, block == 0, sums);
    }
    write_chunk<T>(problem, token, tokens, row, rows, width, sums);
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
  char* scratch = work.scratch + worker * scratch_bytes(problem.weight);
  const int64_t token_part = worker % work.token_parts, chunk_part = worker / work.token_parts;
  const int64_t chunk = first_chunk(problem.weight, chunk_part, work.chunk_parts);
  const int64_t last_chunk = first_chunk(problem.weight, chunk_part + 1, work.chunk_parts);
  constexpr int step = vectors_at_a_time<typename PanelOf<T>::Element>;
  const int64_t groups = (problem.tokens + step * lanes - 1) / (step * lanes);
  const auto boundary = [&](int64_t part) {
    return min(problem.tokens, groups * part / work.token_parts * step * lanes);
  };
  const int64_t end = boundary(token_part + 1);
  for (int64_t token = boundary(token_part); token < end; token += panel_tokens) {
    const int64_t tokens = min(panel_tokens, end - token);
    if constexpr (step == 1) {
      if (tokens <= lanes) {
        run_panel<1, T>(problem, token, tokens, chunk, last_chunk, scratch);
        continue;
      }
      if (tokens > 2 * lanes && tokens <= 3 * lanes) {
        run_panel<3, T>(problem, token, tokens, chunk, last_chunk, scratch);
        continue;
      }
    }
    if (tokens <= 2 * lanes)
      run_panel<2, T>(problem, token, tokens, chunk, last_chunk, scratch);
    else
      run_panel<4, T>(problem, token, tokens, chunk, last_chunk, scratch);
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

extern const MaskedLinearKernels masked_linear_kernels = {scratch_bytes, run, grad_values_scratch_bytes,
                                                          grad_values};

}  // namespace vleff::VLEFF_ISA
