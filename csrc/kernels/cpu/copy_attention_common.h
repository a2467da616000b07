#pragma once
#include "attention_common.h"
#include "copy_attention.h"

// What forward, backward and rows of copy_attention share.
namespace vleff::VLEFF_ISA {

constexpr int copy_parts = 1 + copy_sources;  // generate, then copy from each source

// One sample's part of a source.
template <class T>
struct SourceRows {
  RaggedRows<T> keys;
  const int32_t* ids;
  int64_t first, count;

  SourceRows(const CopyProblem& problem, int source, int64_t sample) {
    const CopySource& whole = problem.sources[source];
    first = whole.offsets[sample];
    count = whole.offsets[sample + 1] - first;
    keys = {static_cast<const T*>(whole.keys) + first * problem.width, problem.width, nullptr, problem.width};
    ids = whole.ids + first;
  }
};

// Logarithms of the gate; -inf where it is closed.
struct LogGate {
  float of[copy_parts];
};

template <class T>
LogGate log_gate(const CopyProblem& problem, int64_t query, const bool (&open)[copy_sources]) {
  Float logits = load_first(static_cast<const T*>(problem.gate_logits) + query * copy_parts, copy_parts);
  LogGate gate;
  float largest = logits[0], sum = 0.0f;
  for (int part = 0; part < copy_parts; ++part) {
    gate.of[part] = part == 0 || open[part - 1] ? logits[part] : -infinity;
    if (gate.of[part] > largest) largest = gate.of[part];
  }
  for (int part = 0; part < copy_parts; ++part) sum += __builtin_expf(gate.of[part] - largest);
  const float lse = largest + __builtin_logf(sum);
  for (int part = 0; part < copy_parts; ++part) gate.of[part] -= lse;
  return gate;
}

// log(exp(a) + exp(b))
inline float log_add(float a, float b) {
  const float larger = a > b ? a : b, smaller = a > b ? b : a;
  return smaller == -infinity ? larger : larger + __builtin_log1pf(__builtin_expf(smaller - larger));
}

}  // namespace vleff::VLEFF_ISA
