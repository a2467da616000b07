#pragma once
#include "attention_distillation.cuh"
#include "gradient_units.cuh"

// Both gradients make the logits again: nothing of the size of an attention map is stored. With teacher's
// attention P and student's Q, the gradient of the student's logits is grad * (Q - P).
namespace vleff::cuda {

// A block takes the queries of one tile of one (sample, head) and walks over its keys.
template <class Tile>
__global__ void __launch_bounds__(Tile::threads, 1)
    attention_distillation_grad_q(const __grid_constant__ DistillationGradient gradient) {
  using T = typename Tile::Element;
  const DistillationProblem& problem = gradient.problem;
  const int tiles = tiles_of(problem.queries, Tile::stationary_rows);
  const BlockTask task(problem, tiles);
  const HeadResult<T> result{static_cast<T*>(gradient.grad_q), problem.heads, task.head,
                             static_cast<int>(problem.student.head_dim)};
  if (task.sample == problem.batch) {
    fill_unowned_rows<Tile>(problem.queries, problem.batch, task.tile, tiles,
                            [&](int first, int rows) { zero_head_rows<Tile>(result, first, rows); });
    return;
  }
  const SampleRows queries(problem.queries, task.sample), keys(problem.keys, task.sample);
  const int first_query = task.tile * Tile::stationary_rows;
  if (first_query >= queries.count) return;
  const int rows = min(queries.count - first_query, Tile::stationary_rows);
  if (keys.count == 0) {
    zero_head_rows<Tile>(result, queries.first + first_query, rows);
    return;
  }

  extern __shared__ __align__(128) unsigned char shared[];
  const DistillationMemory<Tile> memory(shared);
  const Lane lane;
  const float teacher_scale = problem.teacher.scale * log2_of_e;
  const float student_scale = problem.student.scale * log2_of_e;
  Softmax teacher[2], student[2];  // of the lane's two queries
  float factor[2] = {0.0f, 0.0f};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = min(lane.warp * 16 + lane.group + 8 * half, rows - 1);
    const int64_t place = (queries.first + first_query + row) * problem.heads + task.head;
    const float* const statistics = problem.statistics + place * statistics_of_query;
    teacher[half] = Softmax(statistics[0], statistics[1]);
    student[half] = Softmax(statistics[2], statistics[3]);
    factor[half] = gradient.grad_divergence[place] * problem.student.scale / weight_unit;
  }
  SumFragment out[Tile::width / 8] = {};
  const auto add_tile = [&](int first_key, const auto& of_teacher, auto& weights) {
    const int present = keys.count - first_key;
#pragma unroll
    for (int j = 0; j < Tile::streamed_rows / 8; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float p = teacher[e / 2].of(of_teacher[j][e] * teacher_scale);
        const float q = student[e / 2].of(weights[j][e] * student_scale);
        weights[j][e] = 8 * j + 2 * lane.thread + e % 2 < present ? (q - p) * weight_unit : 0.0f;
      }
    }
    multiply_weights<Tile>(out, weights, memory.student_tile, lane);
  };
  for_each_tile<Tile>(
      memory, {problem.queries, problem.keys, queries, keys, first_query},
      operands_by_query<T>(problem.teacher, task.head), operands_by_query<T>(problem.student, task.head),
      lane, [](int) {}, add_tile);
  store_head_rows<Tile>(result, out, factor, memory.student, queries.first + first_query, rows, lane);
}

template <class Tile>
constexpr int grad_k_shared_bytes =
    DistillationMemory<Tile>::bytes + (statistics_of_query + 1) * Tile::streamed_rows * 4;

// A block takes the keys of one tile of one (sample, head) and walks over its queries in order, so that no
// atomic addition is needed.
template <class Tile>
__global__ void __launch_bounds__(Tile::threads, 1)
    attention_distillation_grad_k(const __grid_constant__ DistillationGradient gradient) {
  using T = typename Tile::Element;
  const DistillationProblem& problem = gradient.problem;
  const int tiles = tiles_of(problem.keys, Tile::stationary_rows);
  const BlockTask task(problem, tiles);
  const HeadResult<T> result{static_cast<T*>(gradient.grad_k), problem.heads, task.head,
                             static_cast<int>(problem.student.head_dim)};
  if (task.sample == problem.batch) {
    fill_unowned_rows<Tile>(problem.keys, problem.batch, task.tile, tiles,
                            [&](int first, int rows) { zero_head_rows<Tile>(result, first, rows); });
    return;
  }
  const SampleRows queries(problem.queries, task.sample), keys(problem.keys, task.sample);
  const int first_key = task.tile * Tile::stationary_rows;
  if (first_key >= keys.count) return;
  const int rows = min(keys.count - first_key, Tile::stationary_rows);
  if (queries.count == 0) {
    zero_head_rows<Tile>(result, keys.first + first_key, rows);
    return;
  }

  extern __shared__ __align__(128) unsigned char shared[];
  const DistillationMemory<Tile> memory(shared);
  float* const numbers = reinterpret_cast<float*>(memory.rest);  // of each streamed query: statistics, grad
  const Lane lane;
  const int heads = static_cast<int>(problem.heads);
  const float teacher_scale = problem.teacher.scale * log2_of_e;
  const float student_scale = problem.student.scale * log2_of_e;
  const int64_t first_place = queries.first * problem.heads + task.head;
  const float* const grads = gradient.grad_divergence + first_place;
  const float* const statistics = problem.statistics + first_place * statistics_of_query;
  const float unit = unit_of<Tile::threads>(grads, queries.count, heads, numbers);
  const float grad_factor = weight_unit / unit;

  const auto load_numbers_of = [&](int first_query) {
#pragma unroll
    for (int i = 0; i < statistics_of_query; ++i) {
      load_numbers<Tile>(numbers + i * Tile::streamed_rows, statistics + i, first_query, queries.count,
                         heads * statistics_of_query);
    }
    load_numbers<Tile>(numbers + statistics_of_query * Tile::streamed_rows, grads, first_query, queries.count,
                       heads);
  };
  SumFragment out[Tile::width / 8] = {};
  const auto add_tile = [&](int first_query, const auto& of_teacher, auto& weights) {
#pragma unroll
    for (int j = 0; j < Tile::streamed_rows / 8; ++j) {
#pragma unroll
      for (int column = 0; column < 2; ++column) {
        const int query = 8 * j + 2 * lane.thread + column;
        const auto number = [&](int i) { return numbers[i * Tile::streamed_rows + query]; };
        const bool present = first_query + query < queries.count;
        const Softmax teacher(number(0), number(1)), student(number(2), number(3));
        const float grad = number(statistics_of_query) * grad_factor;
#pragma unroll
        for (int e = column; e < 4; e += 2) {
          const float p = teacher.of(of_teacher[j][e] * teacher_scale);
          const float q = student.of(weights[j][e] * student_scale);
          weights[j][e] = present ? (q - p) * grad : 0.0f;
        }
      }
    }
    multiply_weights<Tile>(out, weights, memory.student_tile, lane);
  };
  for_each_tile<Tile>(memory, {problem.keys, problem.queries, keys, queries, first_key},
                      operands_by_key<T>(problem.teacher, task.head),
                      operands_by_key<T>(problem.student, task.head), lane, load_numbers_of, add_tile);
  const float back = unit / weight_unit * problem.student.scale;
  store_head_rows<Tile>(result, out, {back, back}, memory.student, keys.first + first_key, rows, lane);
}

}  // namespace vleff::cuda
