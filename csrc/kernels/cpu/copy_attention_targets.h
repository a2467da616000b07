#pragma once
#include "copy_attention_common.h"
#include "gradient_blocks.h"

// copy_attention of targets, forward and backward. A task is a sample, whose attention to a source is one
// tile.
namespace vleff::VLEFF_ISA {

inline UInt load_ids(const int32_t* ids, int64_t count) {
  return (UInt)load_first(reinterpret_cast<const float*>(ids), count);
}

// The products of one sample's queries with a source's keys.
template <class T, class Product>
struct QueryTile {
  Word *queries, *keys_transposed;
  float* tile;  // [most_queries, stride of the longest sample]

  QueryTile(Arena& arena, const CopyProblem& problem, int64_t longest)
      : queries(arena.take<Word>(problem.most_queries * words<Product>(problem.width))),
        keys_transposed(arena.take<Word>(panel_words(longest, words<Product>(problem.width)))),
        tile(arena.take<float>(problem.most_queries * logits_stride(longest))) {}

  static int64_t longest(const CopyProblem& problem) {
    return max(problem.sources[0].longest, problem.sources[1].longest);
  }

  void multiply_queries(RaggedRows<T> rows, int64_t count, const SourceRows<T>& source) const {
    const int64_t depth = words<Product>(rows.width);
    pack_transposed<Product>(source.keys, source.count, depth, keys_transposed);
    multiply<Product>(left_operand<Product>(rows, count, queries), packed_panels(keys_transposed, depth),
                      {tile, logits_stride(source.count)}, count, source.count, depth, false);
  }
};

// One query's products with a source's keys, as base-two logits; -inf beyond the last position.
struct CopyRow {
  const float* products;
  const int32_t* ids;
  int64_t count;
  float scale;
  UInt target;

  CopyRow(const float* row, const int32_t* id, int64_t positions, float base_two_scale, int32_t word)
      : products(row),
        ids(id),
        count(positions),
        scale(base_two_scale),
        target(UInt{} + static_cast<uint32_t>(word)) {}

  Float logits(int64_t position) const {
    return base_two_logits<false>(products, nullptr, position, count, scale);
  }
  // The logits of positions that hold the target; -inf elsewhere.
  Float target_logits(int64_t position) const {
    return load_ids(ids + position, count - position) == target ? logits(position) : broadcast(-infinity);
  }
  Float attention(int64_t position, const SoftmaxStatistics& statistics) const {
    return exp2(logits(position) - statistics.maximum) * (1.0f / statistics.sum);
  }
};

inline CopyStatistics copy_statistics(const CopyRow& row) {
  Float largest = broadcast(-infinity), target_largest = broadcast(-infinity);
  for (int64_t position = 0; position < row.count; position += lanes) {
    largest = maximum(largest, row.logits(position));
    target_largest = maximum(target_largest, row.target_logits(position));
  }
  const float all = reduce_maximum(largest), target = reduce_maximum(target_largest);
  Float sum{}, target_sum{};
  for (int64_t position = 0; position < row.count; position += lanes) {
    sum += exp2(row.logits(position) - all);
    if (target > -infinity) target_sum += exp2(row.target_logits(position) - target);
  }
  return {{all, reduce_add(sum)}, {target, reduce_add(target_sum)}};
}

// The logarithms of the ways in which a target comes about, and of their sum.
struct TargetParts {
  float of[copy_parts];

  TargetParts(const LogGate& gate, float generate, const CopyStatistics* statistics) {
    of[0] = gate.of[0] + generate;
    for (int source = 0; source < copy_sources; ++source) {
      const auto& [all, target] = statistics[source];
      const float copied = (target.maximum - all.maximum) * ln_of_2 + __builtin_logf(target.sum / all.sum);
      of[source + 1] = target.sum > 0 ? gate.of[source + 1] + copied : -infinity;
    }
  }
  float log_sum() const { return log_add(log_add(of[0], of[1]), of[2]); }
};

template <class T, class Product>
struct CopyForward {
  struct Buffers {
    QueryTile<T, Product> products;
    float* covered;

    Buffers(Arena& arena, const CopyProblem& problem)
        : products(arena, problem, QueryTile<T, Product>::longest(problem)),
          covered(arena.take<float>(round_up(QueryTile<T, Product>::longest(problem), lanes))) {}
  };

  static int64_t scratch_bytes(const CopyProblem& problem) {
    Arena arena(nullptr);
    Buffers(arena, problem);
    return arena.used();
  }

  static void run(const CopyProblem& problem, const CopyTargets& targets, const CopyOutput& output,
                  void* scratch, const Parallel& parallel) {
    const int64_t bytes = scratch_bytes(problem);
    for_each_task(parallel, problem.batch, [&](int64_t worker, int64_t sample, int64_t) {
      Arena arena(static_cast<char*>(scratch) + worker * bytes);
      attend(problem, targets, output, sample, Buffers(arena, problem));
    });
  }

  static void attend(const CopyProblem& problem, const CopyTargets& targets, const CopyOutput& output,
                     int64_t sample, const Buffers& buffers) {
    const int64_t begin = problem.query_offsets[sample], end = problem.query_offsets[sample + 1];
    if (begin == end) return;
    const RaggedRows<T> queries{static_cast<const T*>(problem.queries) + begin * problem.width, problem.width,
                                nullptr, problem.width};
    if (output.coverage_loss)
      for (int64_t query = begin; query < end; ++query) output.coverage_loss[query] = 0.0f;
    bool open[copy_sources];
    for (int number = 0; number < copy_sources; ++number) {
      const SourceRows<T> source(problem, number, sample);
      open[number] = source.count > 0;
      if (open[number]) buffers.products.multiply_queries(queries, end - begin, source);
      fill_rows(buffers.covered, 1, 0, round_up(source.count, lanes), 0.0f);
      for (int64_t query = begin; query < end; ++query) {
        const CopyRow row(buffers.products.tile + (query - begin) * logits_stride(source.count), source.ids,
                          source.count, problem.scale * log2_of_e, targets.words[query]);
        const CopyStatistics statistics = copy_statistics(row);
        output.statistics[query * copy_sources + number] = statistics;
        if (output.coverage_loss) output.coverage_loss[query] += cover(row, statistics.all, buffers.covered);
      }
    }
    for (int64_t query = begin; query < end; ++query)
      output.log_probs[query] =
          TargetParts(log_gate<T>(problem, query, open), targets.generate_log_probs[query],
                      output.statistics + query * copy_sources)
              .log_sum();
  }

  // The loss of one row, whose attention is then covered.
  static float cover(const CopyRow& row, const SoftmaxStatistics& statistics, float* covered) {
    Float loss{};
    for (int64_t position = 0; position < row.count; position += lanes) {
      Float attention = row.attention(position, statistics), before = load(covered + position);
      loss += attention < before ? attention : before;
      store(covered + position, before + attention);
    }
    return reduce_add(loss);
  }
};

template <class T, class Product>
struct CopyBackward {
  struct Buffers {
    QueryTile<T, Product> products;
    Word *queries_right, *keys_right, *pairs;
    float *grad_queries, *grad_keys;
    float* shares;            // [most_queries, copy_sources]: gradient times a source's share in P
    float *covered, *suffix;  // of coverage: as `tile`; of the rows behind, the gradient in what they cover

    Buffers(Arena& arena, const CopyProblem& problem, bool coverage)
        : products(arena, problem, QueryTile<T, Product>::longest(problem)) {
      const int64_t longest = QueryTile<T, Product>::longest(problem), queries = problem.most_queries;
      const int64_t row = round_up(problem.width, lanes);
      const bool paired = Product::elements_per_word == 2;
      queries_right = arena.take<Word>(panel_words(problem.width, words<Product>(queries)));
      keys_right = arena.take<Word>(panel_words(problem.width, words<Product>(longest)));
      pairs = arena.take<Word>(paired ? words<Product>(queries) * logits_stride(longest) : 0);
      grad_queries = arena.take<float>(queries * row);
      grad_keys = arena.take<float>(longest * row);
      shares = arena.take<float>(queries * copy_sources);
      covered = arena.take<float>(coverage ? queries * logits_stride(longest) : 0);
      suffix = arena.take<float>(coverage ? round_up(longest, lanes) : 0);
    }
  };

  static int64_t scratch_bytes(const CopyProblem& problem, bool coverage) {
    Arena arena(nullptr);
    Buffers(arena, problem, coverage);
    return arena.used();
  }

  static void run(const CopyProblem& problem, const CopyTargets& targets, const CopyGradient& gradient,
                  void* scratch, const Parallel& parallel) {
    const bool coverage = gradient.grad_coverage_loss;
    const int64_t bytes = scratch_bytes(problem, coverage);
    for_each_task(parallel, problem.batch, [&](int64_t worker, int64_t sample, int64_t) {
      Arena arena(static_cast<char*>(scratch) + worker * bytes);
      differentiate(problem, targets, gradient, sample, Buffers(arena, problem, coverage));
    });
  }

  static void differentiate(const CopyProblem& problem, const CopyTargets& targets,
                            const CopyGradient& gradient, int64_t sample, const Buffers& buffers) {
    const int64_t width = problem.width, row_width = round_up(width, lanes);
    const int64_t begin = problem.query_offsets[sample], count = problem.query_offsets[sample + 1] - begin;
    T* grad_queries = static_cast<T*>(gradient.grad_queries) + begin * width;
    const RaggedRows<T> queries{static_cast<const T*>(problem.queries) + begin * width, width, nullptr,
                                width};
    const SourceRows<T> sources[copy_sources] = {SourceRows<T>(problem, 0, sample),
                                                 SourceRows<T>(problem, 1, sample)};
    const bool open[copy_sources] = {sources[0].count > 0, sources[1].count > 0};
    for (int64_t query = 0; query < count; ++query)
      split(problem, targets, gradient, begin + query, open, buffers.shares + query * copy_sources);
    pack_right<Product>(queries, count, words<Product>(count), buffers.queries_right);
    bool accumulate = false;
    for (int number = 0; number < copy_sources; ++number) {
      const SourceRows<T>& source = sources[number];
      T* grad_keys = static_cast<T*>(gradient.grad_keys[number]) + source.first * width;
      if (source.count == 0 || count == 0) {
        fill_rows(grad_keys, source.count, width, width, 0.0f);
        continue;
      }
      const int64_t stride = logits_stride(source.count), key_words = words<Product>(source.count);
      buffers.products.multiply_queries(queries, count, source);
      logit_gradients(problem, targets, gradient, begin, count, source, number, buffers);
      const Word* rows = reinterpret_cast<const Word*>(buffers.products.tile);
      const Word* columns = rows;
      if constexpr (Product::elements_per_word == 2) {
        pair_rows<T>(buffers.products.tile, count, stride, round_up(source.count, lanes), buffers.pairs);
        columns = buffers.pairs;
      }
      pack_right<Product>(source.keys, source.count, key_words, buffers.keys_right);
      multiply<Product>({columns, 1, stride}, packed_panels(buffers.queries_right, words<Product>(count)),
                        {buffers.grad_keys, row_width}, source.count, width, words<Product>(count), false);
      multiply<Product>({rows, stride, 1}, packed_panels(buffers.keys_right, key_words),
                        {buffers.grad_queries, row_width}, count, width, key_words, accumulate);
      accumulate = true;
      store_gradient(buffers.grad_keys, source.count, width, problem.scale, grad_keys, width);
    }
    if (accumulate)
      store_gradient(buffers.grad_queries, count, width, problem.scale, grad_queries, width);
    else
      fill_rows(grad_queries, count, width, width, 0.0f);
  }

  // Divides a query's gradient among the ways in which its target comes about.
  static void split(const CopyProblem& problem, const CopyTargets& targets, const CopyGradient& gradient,
                    int64_t query, const bool (&open)[copy_sources], float* shares) {
    const LogGate gate = log_gate<T>(problem, query, open);
    const TargetParts parts(gate, targets.generate_log_probs[query],
                            gradient.statistics + query * copy_sources);
    const bool possible = gradient.log_probs[query] > -infinity;
    const float grad = possible ? gradient.grad_log_probs[query] : 0.0f;
    Float grad_gate{};
    for (int part = 0; part < copy_parts; ++part) {
      const float share = possible ? __builtin_expf(parts.of[part] - gradient.log_probs[query]) : 0.0f;
      grad_gate[part] = grad * (share - __builtin_expf(gate.of[part]));
      (part == 0 ? gradient.grad_generate_log_probs[query] : shares[part - 1]) = grad * share;
    }
    store_first(static_cast<T*>(gradient.grad_gate_logits) + query * copy_parts, grad_gate, copy_parts);
  }

  // The tile of products becomes that of the gradients of the logits, 0 beyond the last position.
  static void logit_gradients(const CopyProblem& problem, const CopyTargets& targets,
                              const CopyGradient& gradient, int64_t begin, int64_t count,
                              const SourceRows<T>& source, int number, const Buffers& buffers) {
    const int64_t stride = logits_stride(source.count);
    const auto row_of = [&](int64_t query) {
      return CopyRow(buffers.products.tile + query * stride, source.ids, source.count,
                     problem.scale * log2_of_e, targets.words[begin + query]);
    };
    const auto statistics_of = [&](int64_t query) -> const CopyStatistics& {
      return gradient.statistics[(begin + query) * copy_sources + number];
    };
    if (gradient.grad_coverage_loss) {
      fill_rows(buffers.suffix, 1, 0, round_up(source.count, lanes), 0.0f);
      fill_rows(buffers.covered, 1, 0, round_up(source.count, lanes), 0.0f);
      for (int64_t query = 0; query + 1 < count; ++query)
        for (int64_t position = 0; position < source.count; position += lanes)
          store(buffers.covered + (query + 1) * stride + position,
                load(buffers.covered + query * stride + position) +
                    row_of(query).attention(position, statistics_of(query).all));
    }
    for (int64_t query = count - 1; query >= 0; --query) {
      const CopyRow row = row_of(query);
      const auto& [all, target] = statistics_of(query);
      const float share = buffers.shares[query * copy_sources + number];
      const float target_factor = target.sum > 0 ? share / target.sum : 0.0f;
      float* covered = buffers.covered + query * stride;
      float mean = 0.0f;
      if (gradient.grad_coverage_loss)
        mean =
            coverage_gradient(row, all, gradient.grad_coverage_loss[begin + query], covered, buffers.suffix);
      for (int64_t position = 0; position < source.count; position += lanes) {
        Float attention = row.attention(position, all);
        Float grad = -share * attention;
        if (target.sum > 0) grad += exp2(row.target_logits(position) - target.maximum) * target_factor;
        if (gradient.grad_coverage_loss) grad += attention * (load(covered + position) - mean);
        store(buffers.products.tile + query * stride + position, grad);
      }
    }
  }

  // covered: what the rows before attend to -> the gradient in this row's attention. suffix: the gradient of
  // the losses of the rows behind in what they find covered. Returns the mean of the gradient under the
  // attention.
  static float coverage_gradient(const CopyRow& row, const SoftmaxStatistics& statistics, float grad,
                                 float* covered, float* suffix) {
    Float mean{};
    for (int64_t position = 0; position < row.count; position += lanes) {
      Float attention = row.attention(position, statistics), before = load(covered + position);
      Float own = attention < before    ? broadcast(grad)
                  : attention == before ? broadcast(0.5f * grad)
                                        : Float{};
      Float behind = load(suffix + position);
      store(covered + position, own + behind);
      store(suffix + position, behind + (grad - own));
      mean += attention * (own + behind);
    }
    return reduce_add(mean);
  }
};

}  // namespace vleff::VLEFF_ISA
