#pragma once
#include "copy_attention.cuh"

namespace vleff::cuda {

// Statistics of one query and memory, for all lanes of a warp.
__device__ __forceinline__ CopyStatistics copy_statistics(const CopyRow& row, int target, int lane) {
  float largest = -INFINITY, target_largest = -INFINITY;
  for (int position = lane; position < row.count; position += warp_size) {
    const float logit = row.logits[position];
    largest = fmaxf(largest, logit);
    if (row.ids[position] == target) target_largest = fmaxf(target_largest, logit);
  }
  largest = maximum_of_warp(largest);
  target_largest = maximum_of_warp(target_largest);
  float sum = 0.0f, target_sum = 0.0f;
  for (int position = lane; position < row.count; position += warp_size) {
    const float logit = row.logits[position];
    sum += exp2_approximate(logit - largest);
    if (row.ids[position] == target) target_sum += exp2_approximate(logit - target_largest);
  }
  return {{largest, sum_of_warp(sum)}, {target_largest, sum_of_warp(target_sum)}};
}

// A warp takes a query.
template <class T>
__global__ void __launch_bounds__(warps_of_rows* warp_size)
    copy_log_probs(const __grid_constant__ CopyOfTargets targets) {
  const CopyLogits& problem = targets.logits;
  const Lane lane;
  const QueryOfWarp of_warp(problem, lane);
  if (!of_warp.exists) return;
  const int64_t query = of_warp.query;
  const CopyRow rows[copy_sources] = {CopyRow(problem.memories[0], of_warp.sample, query),
                                      CopyRow(problem.memories[1], of_warp.sample, query)};
  const int target = word_of(targets.words, query, INT32_MAX);
  const CopyStatistics statistics[copy_sources] = {copy_statistics(rows[0], target, lane.number),
                                                   copy_statistics(rows[1], target, lane.number)};
  if (lane.number != 0) return;
  const LogGate gate(static_cast<const T*>(problem.gate_logits) + query * copy_parts, rows);
  const TargetParts parts(gate, targets.generate_log_probs[query], statistics);
  targets.log_probs[query] = parts.log_sum();
#pragma unroll
  for (int source = 0; source < copy_sources; ++source) {
    targets.statistics[query * copy_sources + source] = statistics[source];
  }
}

constexpr int position_threads = 128;

// Blocks whose threads take a position of a memory each, for each sample.
__host__ __device__ inline int64_t position_blocks(const CopyMemory& memory) {
  return square_tiles(memory.rows, position_threads);
}

// The position of a thread, and the sample's queries.
struct PositionOfThread {
  SampleRows queries;
  int position;
  bool exists;

  __device__ PositionOfThread(const CopyLogits& problem, const CopyMemory& memory)
      : queries(rows_of_sample(problem.query_rows, static_cast<int>(blockIdx.x / position_blocks(memory)))) {
    const int sample = static_cast<int>(blockIdx.x / position_blocks(memory));
    position = static_cast<int>(blockIdx.x % position_blocks(memory)) * position_threads + threadIdx.x;
    exists = position < rows_of_sample(memory.rows, sample).count;
  }
};

__device__ __forceinline__ float attention_of(float logit, const SoftmaxStatistics& all) {
  return exp2_approximate(logit - all.maximum) * (1.0f / all.sum);
}

// Logits become min(attention, what the queries before attended to).
struct CopyCoverage {
  CopyOfTargets targets;
  int source;
};
__global__ void __launch_bounds__(position_threads)
    copy_cover(const __grid_constant__ CopyCoverage coverage) {
  const CopyOfTargets& targets = coverage.targets;
  const CopyMemory& memory = targets.logits.memories[coverage.source];
  const PositionOfThread of_thread(targets.logits, memory);
  if (!of_thread.exists) return;
  float covered = 0.0f;
  for (int i = 0; i < of_thread.queries.count; ++i) {
    const int64_t query = of_thread.queries.first + i;
    float& logit = memory.logits[query * memory.stride + of_thread.position];
    const float attention =
        attention_of(logit, targets.statistics[query * copy_sources + coverage.source].all);
    logit = attention < covered ? attention : covered;
    covered += attention;
  }
}

// Sums what copy_cover left. A warp takes a query.
__global__ void __launch_bounds__(warps_of_rows* warp_size)
    copy_coverage_loss(const __grid_constant__ CopyOfTargets targets) {
  const CopyLogits& problem = targets.logits;
  const Lane lane;
  const QueryOfWarp of_warp(problem, lane);
  if (!of_warp.exists) return;
  float loss = 0.0f;
#pragma unroll
  for (int source = 0; source < copy_sources; ++source) {
    const CopyRow row(problem.memories[source], of_warp.sample, of_warp.query);
    for (int position = lane.number; position < row.count; position += warp_size)
      loss += row.logits[position];
  }
  loss = sum_of_warp(loss);
  if (lane.number == 0) targets.coverage_loss[of_warp.query] = loss;
}

}  // namespace vleff::cuda
