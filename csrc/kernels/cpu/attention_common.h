#pragma once
#include "ragged_rows.h"
#include "tasks.h"
#include "token_gather_attention.h"

// What forward and backward of token_gather_attention share.
namespace vleff::VLEFF_ISA {

constexpr float log2_of_e = 1.44269504088896341f;
constexpr float ln_of_2 = 0.69314718055994531f;

// Row stride of a [queries, keys] block: an odd number of cache lines, so that a column walk does not fall
// into few cache sets.
inline int64_t logits_stride(int64_t keys) {
  return round_up(keys, 64 / 4) / 16 % 2 ? round_up(keys, 16) : round_up(keys, 16) + 16;
}

// The keep pattern of dropout: a word for each (sample, head, query, key), the same on every device, at every
// instruction-set level and in backward. Element kept <=> word >= threshold.
class DropoutRow {
 public:
  DropoutRow(const AttentionProblem& problem, int64_t sample, int64_t head, int64_t query)
      : threshold_(static_cast<uint32_t>(min(
            static_cast<int64_t>(static_cast<double>(problem.dropout_p) * 4294967296.0 + 0.5), 0xFFFFFFFF))) {
    const uint64_t of_sample = mix(problem.seed + 0x9E3779B97F4A7C15u * static_cast<uint64_t>(sample + 1));
    const uint64_t of_row =
        mix(of_sample + ((static_cast<uint64_t>(head) << 32) | static_cast<uint64_t>(query)));
    first_ = static_cast<uint32_t>(of_row);
    second_ = static_cast<uint32_t>(of_row >> 32);
  }

  // value where the key is kept, else 0, for the vector of keys from `key` on.
  Float keep(Float value, int64_t key) const {
    UInt x = (lane_numbers() + static_cast<uint32_t>(key)) * 0x9E3779B9u + first_;
    x ^= x >> 16;
    x *= 0x7FEB352Du;
    x ^= second_;
    x ^= x >> 15;
    x *= 0x846CA68Bu;
    x ^= x >> 16;
    return x >= threshold_ ? value : Float{};
  }

 private:
  static uint64_t mix(uint64_t z) {
    z ^= z >> 30;
    z *= 0xBF58476D1CE4E5B9u;
    z ^= z >> 27;
    z *= 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }
  uint32_t threshold_, first_, second_;
};

// Asks for a row that is read soon. A head's rows are short pieces of wide rows, which the processor does not
// foresee.
template <class T>
void prefetch_row(const RaggedRows<T>& rows, int64_t row, int64_t count) {
  constexpr int64_t cache_line = 64;
  if (row >= count) return;
  const char* begin = reinterpret_cast<const char*>(rows[row]);
  for (int64_t byte = 0; byte < rows.width * static_cast<int64_t>(sizeof(T)); byte += cache_line)
    __builtin_prefetch(begin + byte, 0, 2);
}

// One sample's rows of one head.
template <class T>
struct HeadTask {
  int64_t sample, head, queries, keys, first_query, first_key;
  RaggedRows<T> q, k, v;
  const float* key_bias;
  bool dropped;

  HeadTask(const AttentionProblem& problem, int64_t sample_number, int64_t head_number)
      : sample(sample_number), head(head_number) {
    first_query = problem.q_offsets[sample];
    first_key = problem.k_offsets[sample];
    queries = problem.q_offsets[sample + 1] - first_query;
    keys = problem.k_offsets[sample + 1] - first_key;
    q = rows(problem.q, problem.q_index, first_query, problem.head_dim);
    k = rows(problem.k, problem.k_index, first_key, problem.head_dim);
    v = rows(problem.v, problem.k_index, first_key, problem.head_dim);
    key_bias = problem.key_bias ? problem.key_bias + first_key : nullptr;
    dropped = problem.head_mask && !problem.head_mask[sample * problem.heads + head];
  }

  void prefetch(int64_t row) const {
    prefetch_row(k, row, keys);
    prefetch_row(v, row, keys);
    prefetch_row(q, row, queries);
  }

  // Keys that query number `query` sees.
  int64_t visible(const AttentionProblem& problem, int64_t query) const {
    return problem.causal ? max(0, min(keys, query + 1 + keys - queries)) : keys;
  }

  // Rows of this head in a contiguous [rows, heads, head_dim] tensor.
  template <class Element>
  RaggedRows<Element> contiguous(const void* data, const AttentionProblem& problem, int64_t first_row) const {
    const int64_t stride = problem.heads * problem.head_dim;
    return {static_cast<const Element*>(data) + first_row * stride + head * problem.head_dim, stride, nullptr,
            problem.head_dim};
  }

 private:
  RaggedRows<T> rows(const HeadRows& operand, const int32_t* index, int64_t first_row, int64_t width) const {
    const T* data = static_cast<const T*>(operand.data) + head * operand.head_stride;
    return RaggedRows<T>{data, operand.row_stride, index, width}.from(first_row);
  }
};

// key_bias times log2(e), as the exponentials of base 2 need it.
inline void scale_key_bias(const float* key_bias, int64_t keys, float* scaled) {
  for (int64_t key = 0; key < keys; key += lanes)
    store_first(scaled + key, load_first(key_bias + key, keys - key) * log2_of_e, keys - key);
}

// Logits times log2(e) of the vector of keys from `key` on; -inf from `visible` on.
template <bool biased>
inline Float base_two_logits(const float* products, const float* key_bias, int64_t key, int64_t visible,
                             float scale) {
  Float logits = load(products + key) * scale;
  if constexpr (biased) logits = logits + load(key_bias + key);
  if (key + lanes > visible) {
    UInt numbers = lane_numbers() + static_cast<uint32_t>(key);
    logits = numbers < static_cast<uint32_t>(visible) ? logits : broadcast(-infinity);
  }
  return logits;
}

}  // namespace vleff::VLEFF_ISA
