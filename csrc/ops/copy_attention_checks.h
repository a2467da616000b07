#pragma once
#include <array>

#include "../kernels/cpu/copy_attention.h"
#include "checks.h"

// What copy_attention checks on every device: all but the values in tensors.
namespace vleff {

constexpr int64_t any_word = INT32_MAX;

// One memory and the names of its arguments.
struct Memory {
  std::array<const char*, 4> names;  // keys, ids, offsets, longest
  const Tensor &keys, &ids, &offsets;
  int64_t longest;
};

inline Memory question_memory(const Tensor& keys, const Tensor& ids, const Tensor& offsets, int64_t longest) {
  return {{"question_keys", "question_ids", "question_offsets", "max_question"}, keys, ids, offsets, longest};
}
inline Memory paragraph_memory(const Tensor& keys, const Tensor& ids, const Tensor& offsets,
                               int64_t longest) {
  return {
      {"paragraph_keys", "paragraph_ids", "paragraph_offsets", "max_paragraph"}, keys, ids, offsets, longest};
}

inline void check_offsets_shape(const char* op, const char* argument, const Tensor& offsets, int64_t count,
                                const Device& device) {
  check_tensor(op, argument, offsets, {ScalarType::Int}, {count}, "[batch + 1]", device);
  if (offsets.numel() == 0) reject(op, argument, "at least one offset", describe(offsets));
}

inline void check_memory(const char* op, const Memory& memory, ScalarType type, int64_t width, int64_t batch,
                         const Device& device) {
  check_tensor(op, memory.names[0], memory.keys, {type}, {any_size, width}, "[total, width]", device);
  const int64_t total = memory.keys.size(0);
  if (total > INT32_MAX) reject(op, memory.names[0], "at most 2^31 - 1 rows", describe(memory.keys));
  check_tensor(op, memory.names[1], memory.ids, {ScalarType::Int}, {total}, "[total]", device);
  check_offsets_shape(op, memory.names[2], memory.offsets, batch + 1, device);
}

inline void check_queries(const char* op, const Tensor& queries, const Tensor& query_offsets,
                          const Tensor& gate_logits, double scale, const Device& device) {
  check_tensor(op, "queries", queries, {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half},
               {any_size, any_size}, "[targets, width]", device);
  const int64_t rows = queries.size(0), width = queries.size(1);
  if (width < 1) reject(op, "queries", "at least one column", describe(queries));
  if (rows > INT32_MAX) reject(op, "queries", "at most 2^31 - 1 rows", describe(queries));
  check_offsets_shape(op, "query_offsets", query_offsets, any_size, device);
  check_tensor(op, "gate_logits", gate_logits, {queries.scalar_type()}, {rows, 1 + copy_sources},
               "[targets, 3]", device);
  check_scale(op, "scale", scale);
}

inline void check_per_target(const char* op, const char* argument, const Tensor& tensor, int64_t rows,
                             const Device& device) {
  check_tensor(op, argument, tensor, {ScalarType::Float}, {rows}, "[targets]", device);
}

inline void check_copy_statistics(const char* op, const Tensor& statistics, int64_t rows,
                                  const Device& device) {
  check_tensor(op, "statistics", statistics, {ScalarType::Float}, {rows, copy_sources, 4},
               "[targets, memories, 4]", device);
}

inline void check_vocabulary(const char* op, const Tensor& queries, const Tensor& vocabulary_logits,
                             int64_t extended_size, const Device& device) {
  check_tensor(op, "vocabulary_logits", vocabulary_logits, {queries.scalar_type()},
               {queries.size(0), any_size}, "[rows, words]", device);
  const int64_t words = vocabulary_logits.size(1);
  if (words < 1) reject(op, "vocabulary_logits", "at least one word", describe(vocabulary_logits));
  if (extended_size < words || extended_size > INT32_MAX) {
    reject(op, "extended_size", text("from ", words, ", the words of vocabulary_logits, to 2^31 - 1"),
           text(extended_size));
  }
}

}  // namespace vleff
