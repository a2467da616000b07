#include "trim_tokens.h"

#include "activation_functions.h"
#include "element_types.h"
#include "ragged_rows.h"
#include "row_statistics.h"
#include "tasks.h"

namespace vleff::VLEFF_ISA {
namespace {

constexpr int64_t block_rows = 24;  // whose normalized states stay in the second-level cache

// Some rows of one part.
struct Block {
  int32_t part, begin, end;
};

int64_t most_blocks(const TrimTokensProblem& problem) {
  return problem.parts + problem.tokens / block_rows;
}

template <class T, class Product>
class Trim {
 public:
  Trim(const TrimTokensProblem& problem, void* scratch, int64_t threads)
      : p_(problem),
        row_floats_(round_up(problem.width, lanes)),
        rank_floats_(round_up(problem.rank, lanes)),
        depth_(words<Product>(problem.width)),
        arena_(scratch) {
    local_panels_ = arena_.take<Word>(panel_words(p_.rank, depth_));
    hidden_panels_ = arena_.take<Word>(panel_words(p_.rank, p_.rank));
    blocks_ = arena_.take<Block>(most_blocks(p_));
    sums_ = arena_.take<float>(most_blocks(p_) * row_floats_);
    local_ = arena_.take<float>(p_.tokens * rank_floats_);
    from_pooled_ = arena_.take<float>(p_.parts * rank_floats_);
    direction_ = arena_.take<float>(p_.parts * rank_floats_);
    worker_floats_ = block_rows * max(row_floats_, rank_floats_) + block_rows * rank_floats_;
    of_workers_ = arena_.take<float>(threads * worker_floats_);
    left_words_ = round_up(depth_, lanes);
    left_of_workers_ = arena_.take<Word>(threads * block_rows * left_words_);
  }

  int64_t scratch_bytes() const { return arena_.used(); }

  void run(const Parallel& parallel) {
    const int64_t blocks = list_blocks();
    const int64_t panels = (p_.rank + panel_width - 1) / panel_width;
    for_each_task(parallel, 2 * panels,
                  [&](int64_t, int64_t task, int64_t) { pack_panel(task % panels, task < panels); });
    for_each_task(parallel, blocks,
                  [&](int64_t worker, int64_t task, int64_t) { project_block(worker, task); });
    for_each_task(parallel, p_.parts,
                  [&](int64_t worker, int64_t part, int64_t) { finish_part(worker, part, blocks); });
    for_each_task(parallel, blocks,
                  [&](int64_t worker, int64_t task, int64_t) { score_block(worker, blocks_[task]); });
    list_survivors();
  }

 private:
  // Blocks begin where their parts do, so that what is summed together does not depend on other samples.
  int64_t list_blocks() {
    int64_t count = 0;
    for (int64_t part = 0; part < p_.parts; ++part)
      for (int32_t begin = p_.offsets[part]; begin < p_.offsets[part + 1]; begin += block_rows)
        blocks_[count++] = {static_cast<int32_t>(part), begin,
                            static_cast<int32_t>(min(begin + block_rows, p_.offsets[part + 1]))};
    return count;
  }

  void pack_panel(int64_t panel, bool is_local) {
    const int64_t column = panel * panel_width, count = min(panel_width, p_.rank - column);
    if (is_local) {
      const RaggedRows<T> weight{static_cast<const T*>(p_.local_weight), p_.width, nullptr, p_.width};
      pack_transposed<Product>(weight.from(column), count, depth_, local_panels_ + column * depth_);
    } else {  // the left half of hidden_weight
      const RaggedRows<T> weight{static_cast<const T*>(p_.hidden_weight), 2 * p_.rank, nullptr, p_.rank};
      pack_transposed<Float32Product>(weight.from(column), count, p_.rank, hidden_panels_ + column * p_.rank);
    }
  }

  float* worker_rows(int64_t worker) const { return of_workers_ + worker * worker_floats_; }

  // One normalized row, [width rounded up to lanes], zeros behind its end.
  void normalize(int64_t token, float* row) const {
    const T* values = static_cast<const T*>(p_.values) + token * p_.width;
    const RowStatistics s = row_statistics(p_.width, p_.eps, row, [&](int64_t column, int64_t count) {
      return load_first(values + column, count);
    });
    for (int64_t column = 0; column < p_.width; column += lanes)
      store(row + column, (load(row + column) - s.mean - s.correction) * s.scale);
    for (int64_t column = p_.width; column < row_floats_; ++column) row[column] = 0;
  }

  // Normalizes a block's rows, sums them and projects them to `local_`.
  void project_block(int64_t worker, int64_t number) {
    const Block& block = blocks_[number];
    const int64_t rows = block.end - block.begin;
    float* normalized = worker_rows(worker);
    float* sums = sums_ + number * row_floats_;
    for (int64_t row = 0; row < rows; ++row) {
      float* own = normalized + row * row_floats_;
      normalize(block.begin + row, own);
      for (int64_t column = 0; column < row_floats_; column += lanes)
        store(sums + column, row ? load(sums + column) + load(own + column) : load(own + column));
    }
    const LeftOperand left = as_words(worker, normalized, rows);
    const Result result{local_ + block.begin * rank_floats_, rank_floats_};
    for_each_depth_block(0, depth_, [&](int64_t first, int64_t count) {
      multiply<Product>({left.data + first, left.row_stride, 1}, packed_panels(local_panels_, depth_), result,
                        rows, p_.rank, count, first > 0, first);
    });
  }

  LeftOperand as_words(int64_t worker, const float* rows, int64_t count) {
    if constexpr (Product::elements_per_word == 1) {
      return {reinterpret_cast<const Word*>(rows), row_floats_, 1};
    } else {
      Word* packed = left_of_workers_ + worker * block_rows * left_words_;
      for (int64_t row = 0; row < count; ++row)
        for (int64_t column = 0; column < row_floats_; column += lanes)
          store(reinterpret_cast<T*>(packed + row * left_words_) + column,
                load(rows + row * row_floats_ + column));
      return {packed, left_words_, 1};
    }
  }

  // The mean of a part, and what it and the other token mean for the part's tokens.
  void finish_part(int64_t worker, int64_t part, int64_t blocks) {
    const int64_t begin = p_.offsets[part], count = p_.offsets[part + 1] - begin;
    float* pooled = p_.pooled + part * p_.width;
    int64_t first = 0, last = blocks;  // the part's first block
    while (first < last) {
      const int64_t middle = (first + last) / 2;
      if (blocks_[middle].part < part)
        first = middle + 1;
      else
        last = middle;
    }
    const float share = 1.0f / static_cast<float>(max(count, 1));
    for (int64_t column = 0; column < p_.width; column += lanes) {
      Float sum{};
      for (int64_t block = first; block < blocks && blocks_[block].part == part; ++block)
        sum += load(sums_ + block * row_floats_ + column);
      store_first(pooled + column, sum * share, p_.width - column);
    }
    float* from_pooled = from_pooled_ + part * rank_floats_;
    float* low = worker_rows(worker);
    for (int64_t i = 0; i < p_.rank; ++i)
      low[i] = dot(pooled, static_cast<const T*>(p_.global_weight) + i * p_.width, p_.width);
    const T* of_pooled = static_cast<const T*>(p_.hidden_weight) + p_.rank;
    for (int64_t i = 0; i < p_.rank; ++i) from_pooled[i] = dot(low, of_pooled + i * 2 * p_.rank, p_.rank);
    const T* bias = static_cast<const T*>(p_.hidden_bias);
    for (int64_t i = 0; i < p_.rank; i += lanes) {
      const int64_t columns = min(lanes, p_.rank - i);
      store_first(from_pooled + i, load_first(from_pooled + i, columns) + load_first(bias + i, columns),
                  columns);
    }
    for (int64_t i = p_.rank; i < rank_floats_; ++i) from_pooled[i] = 0;
    if (p_.other_weight) find_direction(worker, part);
  }

  void find_direction(int64_t worker, int64_t part) {
    float* direction = direction_ + part * rank_floats_;
    const float* other = p_.other ? p_.other + part * p_.other_width : nullptr;
    if (p_.paired) {
      float* row = worker_rows(worker);
      const int64_t partner = part ^ 1;
      if (p_.offsets[partner] < p_.offsets[partner + 1]) {
        normalize(p_.offsets[partner], row);
      } else {
        for (int64_t column = 0; column < row_floats_; ++column) row[column] = 0;
      }
      other = row;
    }
    for (int64_t i = 0; i < rank_floats_; ++i)
      direction[i] = i < p_.rank ? dot(other, static_cast<const T*>(p_.other_weight) + i * p_.other_width,
                                       p_.other_width)
                                 : 0;
    const float scale = 1.0f / length(direction);
    for (int64_t i = 0; i < rank_floats_; i += lanes) store(direction + i, load(direction + i) * scale);
  }

  // Of a vector [rank_floats_], but not 0.
  float length(const float* vector) const {
    const float squared = dot(vector, vector, rank_floats_);
    const float root = static_cast<float>(__builtin_sqrt(static_cast<double>(squared)));
    return root > 1e-12f ? root : 1e-12f;
  }

  void score_block(int64_t worker, const Block& block) {
    const int64_t rows = block.end - block.begin;
    const float* local = local_ + block.begin * rank_floats_;
    float* hidden = worker_rows(worker) + worker_floats_ - block_rows * rank_floats_;
    multiply<Float32Product>({reinterpret_cast<const Word*>(local), rank_floats_, 1},
                             packed_panels(hidden_panels_, p_.rank), {hidden, rank_floats_}, rows, p_.rank,
                             p_.rank, false);
    const float* from_pooled = from_pooled_ + block.part * rank_floats_;
    const float* direction = direction_ + block.part * rank_floats_;
    const T* weight = static_cast<const T*>(p_.score_weight);
    for (int64_t row = 0; row < rows; ++row) {
      const float* own = hidden + row * rank_floats_;
      float logit = sum_of(p_.rank, [&](int64_t column, int64_t count) {
        const Float activated = gelu(load(own + column) + load(from_pooled + column));
        return activated * load_first(weight + column, count);
      });
      logit += p_.score_bias;
      if (p_.other_weight) {
        const float* state = local + row * rank_floats_;
        logit += p_.temperature * dot(state, direction, rank_floats_) / length(state);
      }
      p_.logits[block.begin + row] = logit;
    }
  }

  void list_survivors() {
    int32_t kept = 0;
    for (int64_t part = 0; part < p_.parts; ++part) {
      p_.kept_offsets[part] = kept;
      for (int32_t token = p_.offsets[part]; token < p_.offsets[part + 1]; ++token) {
        const bool stays = p_.logits[token] > p_.threshold || token == p_.offsets[part];
        if (stays || (p_.pinned && p_.pinned[token])) p_.survivors[kept++] = token;
      }
    }
    p_.kept_offsets[p_.parts] = kept;
  }

  const TrimTokensProblem& p_;
  const int64_t row_floats_, rank_floats_, depth_;
  Arena arena_;
  Word* local_panels_;
  Word* hidden_panels_;
  Block* blocks_;
  float* sums_;         // [blocks][row_floats_]
  float* local_;        // [tokens][rank_floats_]
  float* from_pooled_;  // [parts][rank_floats_]
  float* direction_;    // [parts][rank_floats_], of length 1
  int64_t worker_floats_, left_words_;
  float* of_workers_;  // each [block_rows][row_floats_] and [block_rows][rank_floats_]
  Word* left_of_workers_;
};

template <class T, class Product>
struct TrimPass {
  static int64_t scratch_bytes(const TrimTokensProblem& problem, int64_t threads) {
    return Trim<T, Product>(problem, nullptr, threads).scratch_bytes();
  }
  static void run(const TrimTokensProblem& problem, void* scratch, const Parallel& parallel) {
    Trim<T, Product>(problem, scratch, parallel.threads).run(parallel);
  }
};

int64_t scratch_bytes(const TrimTokensProblem& problem, int64_t threads) {
  return with_type<TrimPass>(problem.type, [&](auto pass) { return pass.scratch_bytes(problem, threads); });
}

void run(const TrimTokensProblem& problem, void* scratch, const Parallel& parallel) {
  with_type<TrimPass>(problem.type, [&](auto pass) { pass.run(problem, scratch, parallel); });
}

}  // namespace

extern const TrimTokensKernels trim_tokens_kernels = {scratch_bytes, run};

}  // namespace vleff::VLEFF_ISA
