#include "residual_layer_norm.h"

#include "simd.h"

namespace vleff::VLEFF_ISA {
namespace {

constexpr int64_t elements_per_worker = 16384;  // fewer are not worth waking a thread

// Sums term(column, count) over a row in a fixed order. A term is a vector of the `count` columns from
// `column` on; its other lanes are 0.
template <class Term>
inline float sum_of(int64_t width, const Term& term) {
  constexpr int chains = 4;  // independent sums hide the latency of the addition
  Float sums[chains] = {};
  int64_t column = 0;
  for (; column + chains * lanes <= width; column += chains * lanes)
    for (int chain = 0; chain < chains; ++chain) sums[chain] += term(column + chain * lanes, lanes);
  for (; column < width; column += lanes) sums[0] += term(column, min(lanes, width - column));
  return reduce_add((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

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

  const float mean = sum_of(width,
                            [&](int64_t column, int64_t count) {
                              Float value = load_first(input + column, count);
                              if (residual) value += load_first(residual + column, count);
                              if (sum) store_first(sum + column, value, count);
                              store(row + column, value);
                              return value;
                            }) /
                     static_cast<float>(width);
  // Deviations from the rounded mean: their own mean corrects it, and the variance does not cancel.
  const auto deviation = [&](int64_t column, int64_t count) {
    Float value = load(row + column) - mean;
    return count < lanes ? (lane_numbers() < static_cast<uint32_t>(count) ? value : Float{}) : value;
  };
  const float correction = sum_of(width, deviation) / static_cast<float>(width);
  const float variance = sum_of(width,
                                [&](int64_t column, int64_t count) {
                                  Float value = deviation(column, count);
                                  return value * value;
                                }) /
                             static_cast<float>(width) -
                         correction * correction;
  const float scale = static_cast<float>(1.0 / __builtin_sqrt(static_cast<double>(variance) + problem.eps));

  const auto write = [&](int64_t column, int64_t count) {
    Float value = (load(row + column) - mean - correction) * scale;
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
