#pragma once
#include "copy_attention_targets.cuh"

namespace vleff::cuda {

struct CopyCoverageGradient {
  CopyOfTargetsGradient gradient;
  int source;
};

// covered becomes the gradient of the coverage losses in the attention. A thread takes a position and walks
// over the sample's queries: forwards for what they find covered, backwards for the losses behind that they
// raise.
__global__ void __launch_bounds__(position_threads)
    copy_coverage_gradient(const __grid_constant__ CopyCoverageGradient coverage) {
  const CopyOfTargetsGradient& gradient = coverage.gradient;
  const CopyOfTargets& targets = gradient.targets;
  const CopyMemory& memory = targets.logits.memories[coverage.source];
  const PositionOfThread of_thread(targets.logits, memory);
  if (!of_thread.exists) return;
  float* const covered = gradient.covered[coverage.source];
  const auto place_of = [&](int i) {
    return (of_thread.queries.first + i) * memory.stride + of_thread.position;
  };
  const auto attention = [&](int i) {
    const int64_t query = of_thread.queries.first + i;
    return attention_of(memory.logits[place_of(i)],
                        targets.statistics[query * copy_sources + coverage.source].all);
  };
  float sum = 0.0f;
  for (int i = 0; i < of_thread.queries.count; ++i) {
    covered[place_of(i)] = sum;
    sum += attention(i);
  }
  float behind = 0.0f;
  for (int i = of_thread.queries.count - 1; i >= 0; --i) {
    const float grad = gradient.grad_coverage_loss[of_thread.queries.first + i];
    const float own_attention = attention(i), before = covered[place_of(i)];
    const float own = own_attention < before ? grad : own_attention == before ? 0.5f * grad : 0.0f;
    covered[place_of(i)] = own + behind;
    behind += grad - own;
  }
}

// Gradients of the logits, divided by a power of two of the query's own, times weight_unit; of the gate's
// logits, and of what is generated. A warp takes a query.
template <class T>
__global__ void __launch_bounds__(warps_of_rows* warp_size)
    copy_logit_gradients(const __grid_constant__ CopyOfTargetsGradient gradient) {
  const CopyOfTargets& targets = gradient.targets;
  const CopyLogits& problem = targets.logits;
  const Lane lane;
  const QueryOfWarp of_warp(problem, lane);
  if (!of_warp.exists) return;
  const int64_t query = of_warp.query;
  const CopyRow rows[copy_sources] = {CopyRow(problem.memories[0], of_warp.sample, query),
                                      CopyRow(problem.memories[1], of_warp.sample, query)};
  const CopyStatistics statistics[copy_sources] = {targets.statistics[query * copy_sources],
                                                   targets.statistics[query * copy_sources + 1]};
  const LogGate gate(static_cast<const T*>(problem.gate_logits) + query * copy_parts, rows);
  const TargetParts parts(gate, targets.generate_log_probs[query], statistics);
  const float log_prob = targets.log_probs[query];
  const bool possible = log_prob > -INFINITY;
  const float grad = possible ? gradient.grad_log_probs[query] : 0.0f;
  float shares[copy_parts];
#pragma unroll
  for (int part = 0; part < copy_parts; ++part) {
    shares[part] = possible ? natural_exp(parts.of[part] - log_prob) : 0.0f;
    if (lane.number == 0) {
      static_cast<T*>(gradient.grad_gate_logits)[query * copy_parts + part] =
          static_cast<T>(grad * (shares[part] - natural_exp(gate.of[part])));
    }
    shares[part] *= grad;
  }
  if (lane.number == 0) gradient.grad_generate_log_probs[query] = shares[0];

  const int target = word_of(targets.words, query, INT32_MAX);
  float means[copy_sources] = {};  // of the coverage's gradient under the attention
  const auto coverage_of = [&](int source, int position) {
    return gradient.covered[source][query * problem.memories[source].stride + position];
  };
  if (gradient.grad_coverage_loss) {
#pragma unroll
    for (int source = 0; source < copy_sources; ++source) {
      for (int position = lane.number; position < rows[source].count; position += warp_size) {
        means[source] += attention_of(rows[source].logits[position], statistics[source].all) *
                         coverage_of(source, position);
      }
      means[source] = sum_of_warp(means[source]);
    }
  }
  const auto for_each_gradient = [&](const auto& act) {
#pragma unroll
    for (int source = 0; source < copy_sources; ++source) {
      const SoftmaxStatistics& of_target = statistics[source].target;
      const float share = shares[source + 1];
      for (int position = lane.number; position < rows[source].count; position += warp_size) {
        const float logit = rows[source].logits[position];
        const float attention = attention_of(logit, statistics[source].all);
        float value = -share * attention;
        if (of_target.sum > 0.0f && rows[source].ids[position] == target) {
          value += exp2_approximate(logit - of_target.maximum) * (share / of_target.sum);
        }
        if (gradient.grad_coverage_loss) value += attention * (coverage_of(source, position) - means[source]);
        act(source, position, value);
      }
    }
  };
  float largest = 0.0f;
  for_each_gradient([&](int, int, float value) { largest = fmaxf(largest, fabsf(value)); });
  const float unit = power_of_two_of(maximum_of_warp(largest)), up = weight_unit / unit;
  for_each_gradient([&](int source, int position, float value) {
    static_cast<T*>(gradient.logit_gradients[source])[query * gradient.gradient_stride[source] + position] =
        static_cast<T>(value * up);
  });
  if (lane.number == 0) gradient.factors[query] = unit;
}

}  // namespace vleff::cuda
