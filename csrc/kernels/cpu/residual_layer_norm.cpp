#include "residual_layer_norm.h"

#include "row_statistics.h"

namespace vleff::VLEFF_ISA {
namespace {

constexpr int64_t elements_per_worker = 16384;  // fewer are not worth waking a thread

// row: the float32 sum of one row, [width rounded up to lanes], which stays in the nearest cache
template <class T>
void normalize_row(const ResidualLayerNormProblem& problem, int64_t index, float* row) {
  const int64_t width = problem.width, offset = index * width;
  const T* input = static_cast<const T*>(problem.input) + offset;
  const T* residual = problem.residual ? static_cast<const T*>(problem.residual) + offset : nullptr;
  const T* weight = static_cast<const T*>(problem.weight);
  const T* bias = static_cast<const T*>(problem.bias);
  T* normalized = static_cast<T*>(problem.normalized) + offset;
  T* sum = problem.sum ? static_cast<T*>(problem.sum) + offset : nullptr;

  const RowStatistics statistics =
      row_statistics(width, problem.eps, row, [&](int64_t column, int64_t count) {
        Float value = load_first(input + column, count);
        if (residual) value += load_first(residual + column, count);
        if (sum) store_first(sum + column, value, count);
        return value;
      });
  const auto write = [&](int64_t column, int64_t count) {
    Float value = (load(row + column) - statistics.mean - statistics.correction) * statistics.scale;
    value = value * load_first(weight + column, count) + load_first(bias + column, count);
    store_first(normalized + column, value, count);
  };
  int64_t column = 0;
  for (; column + lanes <= width; column += lanes) write(column, lanes);
  if (column < width) write(column, width - column);
}

int64_t scratch_bytes(int64_t width) {
  return round_up(width * sizeof(float), 64);
}

struct Work {
  const ResidualLayerNormProblem& problem;
  char* scratch;
  int64_t workers;
};

template <class T>
void run_worker(void* context, int64_t worker) {
  const Work& work = *static_cast<const Work*>(context);
  float* row = reinterpret_cast<float*>(work.scratch + worker * scratch_bytes(work.problem.width));
  const int64_t rows = work.problem.rows;
  const int64_t end = rows * (worker + 1) / work.workers;
  for (int64_t index = rows * worker / work.workers; index < end; ++index)
    normalize_row<T>(work.problem, index, row);
}

void run(const ResidualLayerNormProblem& problem, void* scratch, const Parallel& parallel) {
  const int64_t elements = problem.rows * problem.width;
  const int64_t useful = max(1, min(problem.rows, elements / elements_per_worker));
  Work work{problem, static_cast<char*>(scratch), min(parallel.threads, useful)};
  const auto body = problem.type == DataType::float32    ? run_worker<float>
                    : problem.type == DataType::bfloat16 ? run_worker<BFloat16>
                                                         : run_worker<Float16>;
  parallel.run(parallel, work.workers, body, &work);
}

}  // namespace

extern const ResidualLayerNormKernels residual_layer_norm_kernels = {scratch_bytes, run};

}  // namespace vleff::VLEFF_ISA
