#pragma once
#include <array>
#include <vector>

#include "../kernels/cpu/copy_attention.h"
#include "checks.h"
#include "target_words.h"

// What the ops of copy_attention check alike.
namespace vleff {

constexpr int64_t any_word = INT32_MAX;

// One memory and the names of its arguments.
struct CopyMemory {
  std::array<const char*, 4> names;  // keys, ids, offsets, longest
  const Tensor &keys, &ids, &offsets;
  int64_t longest;
};

inline CopyMemory question_memory(const Tensor& keys, const Tensor& ids, const Tensor& offsets,
                                  int64_t longest) {
  return {{"question_keys", "question_ids", "question_offsets", "max_question"}, keys, ids, offsets, longest};
}
inline CopyMemory paragraph_memory(const Tensor& keys, const Tensor& ids, const Tensor& offsets,
                                   int64_t longest) {
  return {
      {"paragraph_keys", "paragraph_ids", "paragraph_offsets", "max_paragraph"}, keys, ids, offsets, longest};
}

// Checked; holds the tensors that `problem` points into.
struct CopyInputs {
  CopyProblem problem{};
  std::vector<Tensor> held;
  int64_t rows = 0;

  const Tensor& hold(const Tensor& tensor) {
    held.push_back(as_contiguous(tensor));
    return held.back();
  }
};

inline void check_offsets_shape(const char* op, const char* argument, const Tensor& offsets, int64_t count) {
  check_tensor(op, argument, offsets, {ScalarType::Int}, {count}, "[batch + 1]");
  if (offsets.numel() == 0) reject(op, argument, "at least one offset", describe(offsets));
}

inline CopySource checked_source(const char* op, const CopyMemory& memory, ScalarType type, int64_t width,
                                 int64_t batch, int64_t extended_size, CopyInputs& inputs) {
  check_tensor(op, memory.names[0], memory.keys, {type}, {any_size, width}, "[total, width]");
  const int64_t total = memory.keys.size(0);
  if (total > INT32_MAX) reject(op, memory.names[0], "at most 2^31 - 1 rows", describe(memory.keys));
  check_tensor(op, memory.names[1], memory.ids, {ScalarType::Int}, {total}, "[total]");
  check_offsets_shape(op, memory.names[2], memory.offsets, batch + 1);
  CopySource source;
  source.keys = inputs.hold(memory.keys).const_data_ptr();
  source.ids = inputs.hold(memory.ids).const_data_ptr<int32_t>();
  source.offsets = inputs.hold(memory.offsets).const_data_ptr<int32_t>();
  check_words(op, memory.names[1], source.ids, total, extended_size);
  source.longest =
      check_offsets(op, memory.names[2], source.offsets, batch, total, memory.names[3], memory.longest);
  return source;
}

// extended_size: ids are below it.
inline CopyInputs checked_copy_inputs(const char* op, const Tensor& queries, const Tensor& query_offsets,
                                      int64_t max_queries, const CopyMemory& question,
                                      const CopyMemory& paragraph, const Tensor& gate_logits,
                                      int64_t extended_size, double scale) {
  check_tensor(op, "queries", queries, {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half},
               {any_size, any_size}, "[targets, width]");
  const ScalarType type = queries.scalar_type();
  const int64_t rows = queries.size(0), width = queries.size(1);
  if (width < 1) reject(op, "queries", "at least one column", describe(queries));
  if (rows > INT32_MAX) reject(op, "queries", "at most 2^31 - 1 rows", describe(queries));
  check_offsets_shape(op, "query_offsets", query_offsets, any_size);
  check_tensor(op, "gate_logits", gate_logits, {type}, {rows, 1 + copy_sources}, "[targets, 3]");
  check_scale(op, "scale", scale);

  CopyInputs inputs;
  inputs.rows = rows;
  CopyProblem& problem = inputs.problem;
  problem.type = data_type(queries);
  problem.batch = query_offsets.numel() - 1;
  problem.width = width;
  problem.queries = inputs.hold(queries).const_data_ptr();
  problem.query_offsets = inputs.hold(query_offsets).const_data_ptr<int32_t>();
  problem.most_queries = check_offsets(op, "query_offsets", problem.query_offsets, problem.batch, rows,
                                       "max_queries", max_queries);
  problem.sources[0] = checked_source(op, question, type, width, problem.batch, extended_size, inputs);
  problem.sources[1] = checked_source(op, paragraph, type, width, problem.batch, extended_size, inputs);
  problem.gate_logits = inputs.hold(gate_logits).const_data_ptr();
  problem.scale = static_cast<float>(scale);
  return inputs;
}

}  // namespace vleff
