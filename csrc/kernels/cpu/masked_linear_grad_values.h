#pragma once
#include "masked_linear_panels.h"

// The sampled product of two panels: one dot product over the tokens for each element of a sparse matrix.
namespace vleff::VLEFF_ISA {

// a where the lane number lacks the bit `distance`, else b; and the same of the lanes `distance` away
template <int distance, int... lane>
inline Float add_halves(Float a, Float b, std::integer_sequence<int, lane...>) {
  return __builtin_shufflevector(a, b, ((lane & distance) ? lanes + lane : lane)...) +
         __builtin_shufflevector(a, b,
                                 ((lane & distance) ? lanes + (lane ^ distance) : (lane ^ distance))...);
}

// Sums each of `lanes` vectors: lane i of the result is the sum of terms[i], in a fixed order.
template <int distance = lanes / 2>
inline Float reduce_each(Float (&terms)[lanes]) {
#pragma GCC unroll 16
  for (int i = 0; i < distance; ++i)
    terms[i] = add_halves<distance>(terms[i], terms[i + distance], std::make_integer_sequence<int, lanes>{});
  if constexpr (distance > 1) return reduce_each<distance / 2>(terms);
  return terms[0];
}

// One row's share of a dot product: [panel_tokens] of a feature of grad_out.
template <class Element>
struct TokenRow;

template <>
struct TokenRow<float> {
  Float of[panel_vectors];

  explicit TokenRow(const float* feature) {
#pragma GCC unroll 4
    for (int vector = 0; vector < panel_vectors; ++vector) of[vector] = load(feature + vector * lanes);
  }
  // in two halves: fewer roundings than one long sum
  Float times(const float* feature) const {
    const auto product = [&](int vector) { return of[vector] * load(feature + vector * lanes); };
    return (product(0) + product(1)) + (product(2) + product(3));
  }
};

#if defined(__AVX512BF16__)
template <>
struct TokenRow<BFloat16> {
  __m512bh of[panel_vectors / 2];

  explicit TokenRow(const BFloat16* feature) {
#pragma GCC unroll 4
    for (int vector = 0; vector < panel_vectors / 2; ++vector)
      of[vector] = (__m512bh)_mm512_loadu_si512(feature + 2 * vector * lanes);
  }
  Float times(const BFloat16* feature) const {
    __m512 sum = _mm512_setzero_ps();
#pragma GCC unroll 4
    for (int vector = 0; vector < panel_vectors / 2; ++vector)
      sum = _mm512_dpbf16_ps(sum, of[vector], (__m512bh)_mm512_loadu_si512(feature + 2 * vector * lanes));
    return (Float)sum;
  }
};
#endif

// grad_values of one row of one block += or = its share
template <class Element>
inline void add_dot_products(const TokenRow<Element>& row, const Element* panel, const uint8_t* columns,
                             int64_t count, bool first, float* grad_values) {
  for (int64_t element = 0; element < count; element += lanes) {
    const int64_t some = min(lanes, count - element);
    Float terms[lanes];
    if (some == lanes) {
#pragma GCC unroll 16
      for (int i = 0; i < lanes; ++i) terms[i] = row.times(panel + columns[element + i] * panel_tokens);
    } else {
      for (int i = 0; i < lanes; ++i)
        terms[i] = i < some ? row.times(panel + columns[element + i] * panel_tokens) : Float{};
    }
    Float sums = reduce_each(terms);
    if (!first) sums += load_first(grad_values + element, some);
    store_first(grad_values + element, sums, some);
  }
}

// Memory of one worker: panels of input and grad_out, with room for any column and row number.
inline int64_t grad_values_scratch_bytes(const MaskedStructure& weight) {
  return (weight.columns + largest_column_block + largest_row_chunk) * panel_tokens * sizeof(float);
}

struct GradValuesWork {
  const MaskedLinearGradValuesProblem& problem;
  char* scratch;
  int64_t workers;
};

template <class T>
void grad_values_worker(void* context, int64_t worker) {
  using Element = typename PanelOf<T>::Element;
  const GradValuesWork& work = *static_cast<const GradValuesWork*>(context);
  const MaskedLinearGradValuesProblem& problem = work.problem;
  const MaskedStructure& weight = problem.weight;
  const int64_t blocks = (weight.columns + weight.column_block - 1) / weight.column_block;
  const int64_t chunks = (weight.rows + weight.row_chunk - 1) / weight.row_chunk;
  Element* rows_panel = reinterpret_cast<Element*>(work.scratch + worker * grad_values_scratch_bytes(weight));
  Element* panel = rows_panel + largest_row_chunk * panel_tokens;
  for (int64_t token = 0; token < problem.tokens; token += panel_tokens) {
    const int64_t tokens = min(panel_tokens, problem.tokens - token);
    pack_panel(static_cast<const T*>(problem.input) + token * weight.columns, weight.columns, tokens,
               weight.columns, panel_tokens, panel);
    for (int64_t chunk = chunks * worker / work.workers; chunk < chunks * (worker + 1) / work.workers;
         ++chunk) {
      const int64_t row = chunk * weight.row_chunk, rows = min(weight.row_chunk, weight.rows - row);
      pack_panel(static_cast<const T*>(problem.grad_out) + token * weight.rows + row, weight.rows, tokens,
                 rows, panel_tokens, rows_panel);
      for (int64_t block = 0; block < blocks; ++block)
        for (int64_t place = row * blocks + block * rows, end = place + rows; place < end; ++place) {
          const int32_t start = weight.starts[place];
          add_dot_products(TokenRow<Element>(rows_panel + weight.order[place] * panel_tokens),
                           panel + block * weight.column_block * panel_tokens, weight.block_columns + start,
                           weight.starts[place + 1] - start, token == 0, problem.grad_values + start);
        }
    }
  }
}

inline void grad_values(const MaskedLinearGradValuesProblem& problem, void* scratch,
                        const Parallel& parallel) {
  const int64_t chunks = (problem.weight.rows + problem.weight.row_chunk - 1) / problem.weight.row_chunk;
  GradValuesWork work{problem, static_cast<char*>(scratch), max(1, min(parallel.threads, chunks))};
  const auto body = problem.type == DataType::float32    ? grad_values_worker<float>
                    : problem.type == DataType::bfloat16 ? grad_values_worker<BFloat16>
                                                         : grad_values_worker<Float16>;
  parallel.run(parallel, work.workers, body, &work);
}

}  // namespace vleff::VLEFF_ISA
