#pragma once
#include "attention_distillation.cuh"

namespace vleff::cuda {

// Running sums of one query over the keys so far, of this lane's columns.
struct RunningDivergence {
  float teacher_maximum = -INFINITY, student_maximum = -INFINITY;
  float teacher_sum = 0.0f, student_sum = 0.0f;
  float weighted = 0.0f;  // sum of 2 ** t * (t - s), t and s less than their maxima

  __device__ void raise_maxima(float teacher, float student) {
    const float t = teacher_maximum - teacher, s = student_maximum - student;
    const float teacher_shrink = exp2_approximate(t);
    // At the first tile the sums are 0 and t and s infinite.
    const float shift = teacher_maximum == -INFINITY ? 0.0f : t - s;
    weighted = (weighted + teacher_sum * shift) * teacher_shrink;
    teacher_sum *= teacher_shrink;
    student_sum *= exp2_approximate(s);
    teacher_maximum = teacher;
    student_maximum = student;
  }
  __device__ void add(float teacher, float student) {
    const float t = teacher - teacher_maximum, s = student - student_maximum;
    const float weight = exp2_approximate(t);
    teacher_sum += weight;
    student_sum += exp2_approximate(s);
    weighted += weight * (t - s);
  }
};

// A block takes the queries of one tile of one (sample, head) and walks over its keys.
template <class Tile>
__global__ void __launch_bounds__(Tile::threads, 1)
    attention_distillation_forward(const __grid_constant__ DistillationProblem problem) {
  using T = typename Tile::Element;
  const int tiles = tiles_of(problem.queries, Tile::stationary_rows);
  const BlockTask task(problem, tiles);
  const auto store = [&](int row, float divergence, const float (&statistics)[statistics_of_query]) {
    const int64_t place = row * problem.heads + task.head;
    problem.divergence[place] = divergence;
#pragma unroll
    for (int i = 0; i < statistics_of_query; ++i) {
      problem.statistics[place * statistics_of_query + i] = statistics[i];
    }
  };
  const auto fill = [&](int first, int rows) {
    for (int row = threadIdx.x; row < rows; row += Tile::threads) {
      store(first + row, 0.0f, {-INFINITY, 0.0f, -INFINITY, 0.0f});
    }
  };
  if (task.sample == problem.batch) {
    fill_unowned_rows<Tile>(problem.queries, problem.batch, task.tile, tiles, fill);
    return;
  }
  const SampleRows queries(problem.queries, task.sample), keys(problem.keys, task.sample);
  const int first_query = task.tile * Tile::stationary_rows;
  if (first_query >= queries.count) return;
  const int rows = min(queries.count - first_query, Tile::stationary_rows);
  if (keys.count == 0) {
    fill(queries.first + first_query, rows);
    return;
  }

  extern __shared__ __align__(128) unsigned char shared[];
  const DistillationMemory<Tile> memory(shared);
  const Lane lane;
  const float teacher_scale = problem.teacher.scale * log2_of_e;
  const float student_scale = problem.student.scale * log2_of_e;
  RunningDivergence running[2];  // of the lane's two queries
  const auto add_tile = [&](int first_key, const auto& of_teacher, const auto& of_student) {
    const int present = keys.count - first_key;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      RunningDivergence& query = running[half];
      float teacher = query.teacher_maximum, student = query.student_maximum;
      const auto for_each_key = [&](const auto& act) {
#pragma unroll
        for (int j = 0; j < Tile::streamed_rows / 8; ++j) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            if (8 * j + 2 * lane.thread + e >= present) continue;
            act(of_teacher[j][2 * half + e] * teacher_scale, of_student[j][2 * half + e] * student_scale);
          }
        }
      };
      for_each_key([&](float t, float s) {
        teacher = fmaxf(teacher, t);
        student = fmaxf(student, s);
      });
      query.raise_maxima(maximum_of_row(teacher), maximum_of_row(student));
      for_each_key([&](float t, float s) { query.add(t, s); });
    }
  };
  for_each_tile<Tile>(
      memory, {problem.queries, problem.keys, queries, keys, first_query},
      operands_by_query<T>(problem.teacher, task.head), operands_by_query<T>(problem.student, task.head),
      lane, [](int) {}, add_tile);

#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const RunningDivergence& query = running[half];
    const float teacher_sum = sum_of_row(query.teacher_sum), student_sum = sum_of_row(query.student_sum);
    const float weighted = sum_of_row(query.weighted) / teacher_sum;
    const int row = lane.warp * 16 + lane.group + 8 * half;
    if (lane.thread == 0 && row < rows) {
      store(queries.first + first_query + row,
            (weighted + (log2f(student_sum) - log2f(teacher_sum))) * ln_of_2,
            {query.teacher_maximum, teacher_sum, query.student_maximum, student_sum});
    }
  }
}

}  // namespace vleff::cuda
