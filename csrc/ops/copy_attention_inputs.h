#pragma once
#include <vector>

#include "copy_attention_checks.h"
#include "target_words.h"

// The arguments that the CPU's ops of copy_attention have in common, checked, values included.
namespace vleff {

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

inline CopySource checked_source(const char* op, const Memory& memory, ScalarType type, int64_t width,
                                 int64_t batch, int64_t extended_size, CopyInputs& inputs) {
  check_memory(op, memory, type, width, batch, DeviceType::CPU);
  const int64_t total = memory.keys.size(0);
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
                                      int64_t max_queries, const Memory& question, const Memory& paragraph,
                                      const Tensor& gate_logits, int64_t extended_size, double scale) {
  check_queries(op, queries, query_offsets, gate_logits, scale, DeviceType::CPU);
  const ScalarType type = queries.scalar_type();
  const int64_t rows = queries.size(0), width = queries.size(1);
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
