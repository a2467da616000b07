#include "attention_distillation.h"

#include "attention_common.h"
#include "element_types.h"
#include "gradient_blocks.h"

namespace vleff::VLEFF_ISA {
namespace {

// A block of queries: its logits on both sides stay in L2. Even, so that bfloat16 pairs of queries never
// straddle two blocks.
constexpr int64_t query_block = 8 * tile_rows;

// One side of one sample's head, and the product of its queries with its keys.
template <class T, class Product>
struct SideTask {
  RaggedRows<T> q, k;
  int64_t keys, stride;
  float scale;  // of base-two logits
  Word *queries, *keys_transposed;
  float* logits;  // [query_block, stride]

  SideTask(Arena& arena, const DistillationSide& side, int64_t max_k)
      : queries(arena.take<Word>(query_block * words<Product>(side.head_dim))),
        keys_transposed(arena.take<Word>(panel_words(max_k, words<Product>(side.head_dim)))),
        logits(arena.take<float>(query_block * logits_stride(max_k))) {}

  void start(const DistillationSide& side, int64_t head, int64_t first_query, int64_t first_key,
             int64_t key_count) {
    q = rows(side.q, head, side.head_dim).from(first_query);
    k = rows(side.k, head, side.head_dim).from(first_key);
    keys = key_count;
    stride = logits_stride(keys);
    scale = side.scale * log2_of_e;
    pack_transposed<Product>(k, keys, words<Product>(k.width), keys_transposed);
  }

  // <q, k> of a block of queries with all keys.
  void multiply_queries(int64_t first, int64_t count) const {
    const int64_t depth = words<Product>(q.width);
    multiply<Product>(left_operand<Product>(q.from(first), count, queries),
                      packed_panels(keys_transposed, depth), {logits, stride}, count, keys, depth, false);
  }

  float* row(int64_t query) const { return logits + query * stride; }

 private:
  static RaggedRows<T> rows(const HeadRows& operand, int64_t head, int64_t width) {
    return {static_cast<const T*>(operand.data) + head * operand.head_stride, operand.row_stride, nullptr,
            width};
  }
};

template <class T, class Product>
struct BothSides {
  SideTask<T, Product> teacher, student;

  BothSides(Arena& arena, const AttentionDistillationProblem& problem, int64_t max_k)
      : teacher(arena, problem.teacher, max_k), student(arena, problem.student, max_k) {}
};

// One sample's head.
struct Place {
  int64_t head, first_query, first_key, queries, keys;

  Place(const AttentionDistillationProblem& problem, int64_t task) : head(task % problem.heads) {
    const int64_t sample = task / problem.heads;
    first_query = problem.q_offsets[sample];
    first_key = problem.k_offsets[sample];
    queries = problem.q_offsets[sample + 1] - first_query;
    keys = problem.k_offsets[sample + 1] - first_key;
  }
};

struct RowDivergence {
  float divergence;
  SoftmaxStatistics teacher, student;
};

template <class Side>
float row_maximum(const Side& side, const float* row) {
  Float largest = broadcast(-infinity);
  for (int64_t key = 0; key < side.keys; key += lanes)
    largest = maximum(largest, base_two_logits<false>(row, nullptr, key, side.keys, side.scale));
  return reduce_maximum(largest);
}

template <class Side>
RowDivergence row_divergence(const Side& teacher, const Side& student, int64_t query) {
  const float *teacher_row = teacher.row(query), *student_row = student.row(query);
  const float teacher_maximum = row_maximum(teacher, teacher_row);
  const float student_maximum = row_maximum(student, student_row);
  Float teacher_sum{}, student_sum{}, weighted{};
  for (int64_t key = 0; key < teacher.keys; key += lanes) {
    Float t =
        base_two_logits<false>(teacher_row, nullptr, key, teacher.keys, teacher.scale) - teacher_maximum;
    Float s =
        base_two_logits<false>(student_row, nullptr, key, student.keys, student.scale) - student_maximum;
    Float weight = exp2(t);
    teacher_sum += weight;
    student_sum += exp2(s);
    weighted += weight > 0.0f ? weight * (t - s) : Float{};  // beyond the last key t - s is NaN
  }
  const SoftmaxStatistics of_teacher{teacher_maximum, reduce_add(teacher_sum)};
  const SoftmaxStatistics of_student{student_maximum, reduce_add(student_sum)};
  const float log_ratio = __builtin_log2f(of_student.sum) - __builtin_log2f(of_teacher.sum);
  return {(reduce_add(weighted) / of_teacher.sum + log_ratio) * ln_of_2, of_teacher, of_student};
}

template <class T, class Product>
struct Forward {
  static int64_t scratch_bytes(const AttentionDistillationProblem& problem, int64_t max_k) {
    Arena arena(nullptr);
    BothSides<T, Product>(arena, problem, max_k);
    return arena.used();
  }

  static void run(const AttentionDistillationProblem& problem, const AttentionDistillationOutput& output,
                  int64_t max_k, void* scratch, const Parallel& parallel) {
    const int64_t bytes = scratch_bytes(problem, max_k);
    for_each_task(parallel, problem.batch * problem.heads, [&](int64_t worker, int64_t task, int64_t) {
      Arena arena(static_cast<char*>(scratch) + worker * bytes);
      compare(problem, output, Place(problem, task), BothSides<T, Product>(arena, problem, max_k));
    });
  }

  static void compare(const AttentionDistillationProblem& problem, const AttentionDistillationOutput& output,
                      const Place& place, BothSides<T, Product> sides) {
    const int64_t start = place.first_query * problem.heads + place.head;
    const auto write = [&](int64_t query, const RowDivergence& row) {
      output.divergence[start + query * problem.heads] = row.divergence;
      output.statistics[2 * (start + query * problem.heads)] = row.teacher;
      output.statistics[2 * (start + query * problem.heads) + 1] = row.student;
    };
    if (place.keys == 0) {
      for (int64_t query = 0; query < place.queries; ++query)
        write(query, {0.0f, {-infinity, 0.0f}, {-infinity, 0.0f}});
      return;
    }
    if (place.queries == 0) return;
    sides.teacher.start(problem.teacher, place.head, place.first_query, place.first_key, place.keys);
    sides.student.start(problem.student, place.head, place.first_query, place.first_key, place.keys);
    for (int64_t first = 0; first < place.queries; first += query_block) {
      const int64_t queries = min(place.queries - first, query_block);
      sides.teacher.multiply_queries(first, queries);
      sides.student.multiply_queries(first, queries);
      for (int64_t query = 0; query < queries; ++query)
        write(first + query, row_divergence(sides.teacher, sides.student, query));
    }
  }
};

template <class Product>
struct GradientScratch {
  Word *keys, *queries, *logit_pairs;  // right operands; gradients of logits as words, pairs of queries
  float *grad_q, *grad_k;

  GradientScratch(Arena& arena, int64_t head_dim, int64_t max_k) {
    const int64_t row = round_up(head_dim, lanes);
    keys = arena.take<Word>(panel_words(head_dim, words<Product>(max_k)));
    queries = arena.take<Word>(panel_words(head_dim, words<Product>(query_block)));
    logit_pairs =
        arena.take<Word>(Product::elements_per_word == 2 ? query_block / 2 * logits_stride(max_k) : 0);
    grad_q = arena.take<float>(query_block * row);
    grad_k = arena.take<float>(max_k * row);
  }
};

// The student's row of products becomes grad * (Q - P), 0 beyond the last key.
template <class Side>
void row_gradient(const Side& teacher, const Side& student, int64_t query,
                  const SoftmaxStatistics* statistics, float grad) {
  const auto [teacher_maximum, teacher_sum] = statistics[0];
  const auto [student_maximum, student_sum] = statistics[1];
  const float teacher_factor = grad / teacher_sum, student_factor = grad / student_sum;
  const float* teacher_row = teacher.row(query);
  float* student_row = student.row(query);
  for (int64_t key = 0; key < teacher.keys; key += lanes) {
    Float p = exp2(base_two_logits<false>(teacher_row, nullptr, key, teacher.keys, teacher.scale) -
                   teacher_maximum);
    Float q = exp2(base_two_logits<false>(student_row, nullptr, key, student.keys, student.scale) -
                   student_maximum);
    store(student_row + key, q * student_factor - p * teacher_factor);
  }
}

template <class T, class Product>
struct Backward {
  static int64_t scratch_bytes(const AttentionDistillationProblem& problem, int64_t max_k) {
    Arena arena(nullptr);
    BothSides<T, Product>(arena, problem, max_k);
    GradientScratch<Product>(arena, problem.student.head_dim, max_k);
    return arena.used();
  }

  static void run(const AttentionDistillationProblem& problem, const AttentionDistillationGradient& gradient,
                  int64_t max_k, void* scratch, const Parallel& parallel) {
    const int64_t bytes = scratch_bytes(problem, max_k);
    for_each_task(parallel, problem.batch * problem.heads, [&](int64_t worker, int64_t task, int64_t) {
      Arena arena(static_cast<char*>(scratch) + worker * bytes);
      const BothSides<T, Product> sides(arena, problem, max_k);
      const GradientScratch<Product> buffers(arena, problem.student.head_dim, max_k);
      differentiate(problem, gradient, Place(problem, task), sides, buffers);
    });
  }

  static void differentiate(const AttentionDistillationProblem& problem,
                            const AttentionDistillationGradient& gradient, const Place& place,
                            BothSides<T, Product> sides, const GradientScratch<Product>& scratch) {
    const int64_t head_dim = problem.student.head_dim, row = round_up(head_dim, lanes);
    const int64_t row_stride = problem.heads * head_dim, column = place.head * head_dim;
    T* grad_q = static_cast<T*>(gradient.grad_q) + place.first_query * row_stride + column;
    T* grad_k = static_cast<T*>(gradient.grad_k) + place.first_key * row_stride + column;
    if (place.keys == 0 || place.queries == 0) {
      fill_rows(grad_q, place.queries, row_stride, head_dim, 0.0f);
      fill_rows(grad_k, place.keys, row_stride, head_dim, 0.0f);
      return;
    }
    const auto &teacher = sides.teacher, &student = sides.student;
    sides.teacher.start(problem.teacher, place.head, place.first_query, place.first_key, place.keys);
    sides.student.start(problem.student, place.head, place.first_query, place.first_key, place.keys);
    const int64_t key_words = words<Product>(place.keys), block_words = words<Product>(query_block);
    pack_right<Product>(student.k, place.keys, key_words, scratch.keys);
    for (int64_t first = 0; first < place.queries; first += query_block) {
      const int64_t queries = min(place.queries - first, query_block);
      teacher.multiply_queries(first, queries);
      student.multiply_queries(first, queries);
      for (int64_t query = 0; query < queries; ++query) {
        const int64_t position = (place.first_query + first + query) * problem.heads + place.head;
        row_gradient(teacher, student, query, gradient.statistics + 2 * position,
                     gradient.grad_divergence[position]);
      }
      pack_right<Product>(student.q.from(first), queries, block_words, scratch.queries);
      const Word* rows = reinterpret_cast<const Word*>(student.logits);
      const Word* columns = rows;
      if constexpr (Product::elements_per_word == 2) {
        pair_rows<T>(student.logits, queries, student.stride, round_up(place.keys, lanes),
                     scratch.logit_pairs);
        columns = scratch.logit_pairs;
      }
      multiply<Product>({columns, 1, student.stride}, packed_panels(scratch.queries, block_words),
                        {scratch.grad_k, row}, place.keys, head_dim, words<Product>(queries), first > 0);
      multiply<Product>({rows, student.stride, 1}, packed_panels(scratch.keys, key_words),
                        {scratch.grad_q, row}, queries, head_dim, key_words, false);
      store_gradient(scratch.grad_q, queries, head_dim, problem.student.scale, grad_q + first * row_stride,
                     row_stride);
    }
    store_gradient(scratch.grad_k, place.keys, head_dim, problem.student.scale, grad_k, row_stride);
  }
};

template <template <class, class> class Pass>
int64_t scratch_bytes(const AttentionDistillationProblem& problem, int64_t max_k) {
  return with_type<Pass>(problem.type, [&](auto pass) { return pass.scratch_bytes(problem, max_k); });
}

template <template <class, class> class Pass, class Arguments>
void run(const AttentionDistillationProblem& problem, const Arguments& arguments, int64_t max_k,
         void* scratch, const Parallel& parallel) {
  with_type<Pass>(problem.type, [&](auto pass) { pass.run(problem, arguments, max_k, scratch, parallel); });
}

}  // namespace

extern const AttentionDistillationKernels attention_distillation_kernels = {
    scratch_bytes<Forward>, run<Forward, AttentionDistillationOutput>, scratch_bytes<Backward>,
    run<Backward, AttentionDistillationGradient>};

}  // namespace vleff::VLEFF_ISA
