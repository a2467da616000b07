// Random problems for the attention kernels: every instruction-set level of this processor must agree with
// the portable one.
#include "fuzzing.h"
#include "kernels/cpu/token_gather_attention.h"

VLEFF_DISPATCH(TokenGatherAttentionKernels, token_gather_attention_kernels)

namespace {

using namespace vleff;

struct Case {
  std::mt19937_64 random;
  AttentionProblem problem{};
  std::vector<std::unique_ptr<char[]>> blocks;
  std::vector<int32_t> q_offsets, k_offsets, q_index, k_index;
  std::vector<uint8_t> head_mask;
  std::vector<float> key_bias;
  int64_t max_q = 0, max_k = 0;

  explicit Case(uint64_t seed) : random(seed) {
    problem.type = static_cast<DataType>(below(3));
    problem.batch = below(5);
    problem.heads = 1 + below(4);
    problem.head_dim = one_in(2) ? 1 + below(256) : 8 << below(5);
    max_q = offsets(&q_offsets);
    max_k = one_in(2) ? offsets(&k_offsets) : (k_offsets = q_offsets, max_q);
    problem.total_q = q_offsets.back();
    problem.total_k = k_offsets.back();
    const int64_t q_rows = index(&q_index, problem.total_q), k_rows = index(&k_index, problem.total_k);
    problem.q = rows(q_rows);
    problem.k = rows(k_rows);
    problem.v = rows(k_rows);
    problem.q_offsets = q_offsets.data();
    problem.k_offsets = k_offsets.data();
    problem.q_index = q_index.empty() ? nullptr : q_index.data();
    problem.k_index = k_index.empty() ? nullptr : k_index.data();
    if (one_in(3)) {
      for (int64_t i = 0; i < problem.batch * problem.heads; ++i) head_mask.push_back(!one_in(3));
      problem.head_mask = head_mask.data();
    }
    if (one_in(3) && problem.total_k > 0) {
      for (int64_t i = 0; i < problem.total_k; ++i)
        key_bias.push_back(one_in(10) ? -std::numeric_limits<float>::infinity() : number());
      problem.key_bias = key_bias.data();
    }
    problem.scale = one_in(8) ? -0.3f : 1.0f / std::sqrt(static_cast<float>(problem.head_dim));
    problem.causal = one_in(3);
    problem.dropout_p = one_in(3) ? 0.25f : 0.0f;
    problem.seed = random();
  }

  int64_t below(int64_t bound) { return static_cast<int64_t>(random() % bound); }
  bool one_in(int64_t n) { return below(n) == 0; }
  float number() { return std::normal_distribution<float>()(random); }

  int64_t offsets(std::vector<int32_t>* result) {
    int64_t longest = 0;
    result->assign(1, 0);
    for (int64_t sample = 0; sample < problem.batch; ++sample) {
      const int64_t length = one_in(5) ? 0 : 1 + below(one_in(4) ? 300 : 40);
      longest = std::max(longest, length);
      result->push_back(result->back() + static_cast<int32_t>(length));
    }
    return longest;
  }
  int64_t index(std::vector<int32_t>* result, int64_t total) {
    if (!one_in(3) || total == 0) return total;
    const int64_t stored = 1 + below(2 * total);
    for (int64_t row = 0; row < total; ++row) result->push_back(static_cast<int32_t>(below(stored)));
    return stored;
  }
  // The last row ends with the block: rows of a wider tensor, of which this operand is the last slice.
  HeadRows rows(int64_t count) {
    const int64_t width = problem.heads * problem.head_dim, gap = one_in(2) ? 0 : below(40);
    const int64_t elements = count * (width + gap), size = size_of(problem.type);
    blocks.push_back(block(elements * size));
    for (int64_t element = 0; element < elements; ++element)
      put(blocks.back().get(), problem.type, element, one_in(50) ? 20 * number() : number());
    return {blocks.back().get() + (count ? gap * size : 0), width + gap, problem.head_dim};
  }
};

Tensors run(Case& c, Isa isa, int64_t threads) {
  set_active_isa(isa);
  const auto& kernels = active_token_gather_attention_kernels();
  const AttentionProblem& p = c.problem;
  const Parallel parallel{threads, run_workers};
  const int64_t size = size_of(p.type), width = p.heads * p.head_dim;
  auto out = block(p.total_q * width * size), lse = block(p.total_q * p.heads * 4);
  auto importance = block(p.total_k * p.heads * 4);
  {
    auto memory = scratch(threads * kernels.forward_scratch_bytes(p, c.max_q, c.max_k));
    kernels.forward(
        p, {out.get(), reinterpret_cast<float*>(lse.get()), reinterpret_cast<float*>(importance.get())},
        c.max_q, c.max_k, memory.get(), parallel);
  }
  auto grad_q = block(p.total_q * width * 4), grad_k = block(p.total_k * width * 4);
  auto grad_v = block(p.total_k * width * 4), grad_key_bias = block(p.total_k * p.heads * 4);
  {
    auto memory = scratch(threads * kernels.backward_scratch_bytes(p, c.max_q, c.max_k));
    const AttentionGradient gradient{out.get(),
                                     nullptr,
                                     out.get(),
                                     reinterpret_cast<float*>(lse.get()),
                                     DataType::float32,
                                     grad_q.get(),
                                     grad_k.get(),
                                     grad_v.get(),
                                     reinterpret_cast<float*>(grad_key_bias.get())};
    kernels.backward(p, gradient, c.max_q, c.max_k, memory.get(), parallel);
  }
  Tensors tensors;
  auto add = [&](const char* name, const std::unique_ptr<char[]>& data, DataType type, int64_t count) {
    std::vector<float> values(count);
    for (int64_t i = 0; i < count; ++i) values[i] = as_float(data.get(), type, i);
    tensors.emplace_back(std::move(values), name);
  };
  add("out", out, p.type, p.total_q * width);
  add("lse", lse, DataType::float32, p.total_q * p.heads);
  add("importance", importance, DataType::float32, p.total_k * p.heads);
  add("grad_q", grad_q, DataType::float32, p.total_q * width);
  add("grad_k", grad_k, DataType::float32, p.total_k * width);
  add("grad_v", grad_v, DataType::float32, p.total_k * width);
  add("grad_key_bias", grad_key_bias, DataType::float32, p.total_k * p.heads);
  return tensors;
}

}  // namespace

void check(uint64_t seed) {
  Case c(seed);
  const Tensors expected = run(c, Isa::baseline, 1);
  const float tolerance = c.problem.type == DataType::float32 ? 2e-4f : 6e-2f;
  for (int level = 0; level <= static_cast<int>(detected_isa()); ++level) {
    const Isa isa = static_cast<Isa>(level);
    const Tensors one = run(c, isa, 1), two = run(c, isa, 2);
    compare(expected, one, tolerance, isa_name(isa), seed);
    compare(one, two, 0.0f, isa_name(isa), seed);
  }
}
