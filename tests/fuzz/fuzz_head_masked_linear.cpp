// Random problems for the kernels of head_masked_linear: every instruction-set level of this processor must
// agree with the portable one, any number of threads bit for bit. Dropped blocks hold NaN, which must not
// spread.
#include "fuzzing.h"
#include "kernels/cpu/head_masked_linear.h"

VLEFF_DISPATCH(HeadMaskedLinearKernels, head_masked_linear_kernels)

namespace {

using namespace vleff;
using Block = std::unique_ptr<char[]>;

struct Case {
  std::mt19937_64 random;
  DataType type;
  HeadFeatures features;
  std::vector<int32_t> offsets{0}, index;
  std::vector<uint8_t> kept;
  int64_t tokens, rows;
  Block input, weight, by_feature, bias, residual;

  explicit Case(uint64_t seed) : random(seed) {
    type = static_cast<DataType>(below(3));
    features = {1 + below(3), 1 + below(4), one_in(2) ? 1 + below(70) : 16 << below(3), 1 + below(300)};
    const int64_t batch = below(6);
    for (int64_t sample = 0; sample < batch; ++sample) {
      const int64_t length = one_in(4) ? 0 : 1 + below(one_in(6) ? 200 : 20);
      offsets.push_back(offsets.back() + static_cast<int32_t>(length));
      for (int64_t head = 0; head < features.heads; ++head) kept.push_back(one_in(2));
    }
    tokens = rows = offsets.back();
    if (one_in(2) && tokens > 0) {
      rows = 1 + below(2 * tokens);
      for (int64_t token = 0; token < tokens; ++token) index.push_back(static_cast<int32_t>(below(rows)));
    }
    input = numbers(rows * features.width);
    weight = numbers(features.count() * features.width);
    by_feature = numbers(tokens * features.count());
    bias = numbers(std::max(features.count(), features.width));
    residual = numbers(tokens * features.width);
    for (size_t sample = 0; sample + 1 < offsets.size(); ++sample)
      for (int64_t token = offsets[sample]; token < offsets[sample + 1]; ++token)
        for (int64_t feature = 0; feature < features.count(); ++feature)
          if (!kept[sample * features.heads + feature / features.head_dim % features.heads])
            put(by_feature.get(), type, token * features.count() + feature, NAN);
  }
  int64_t below(int64_t bound) { return static_cast<int64_t>(random() % bound); }
  bool one_in(int64_t n) { return below(n) == 0; }

  Block numbers(int64_t count) {
    Block data = block(count * size_of(type));
    for (int64_t i = 0; i < count; ++i) put(data.get(), type, i, std::normal_distribution<float>()(random));
    return data;
  }

  HeadMask mask(const std::vector<uint8_t>& of_heads, int64_t heads) const {
    return {static_cast<int64_t>(offsets.size()) - 1, heads, offsets.data(), of_heads.data()};
  }

  // The mask of `parts` times as many heads
  std::vector<uint8_t> repeated() const {
    std::vector<uint8_t> all;
    for (size_t first = 0; first < kept.size(); first += features.heads)
      for (int64_t part = 0; part < features.parts; ++part)
        all.insert(all.end(), kept.begin() + first, kept.begin() + first + features.heads);
    return all;
  }

  Block run(HeadMaskedDirection direction, bool transposed, int64_t threads) const {
    const auto& kernels = active_head_masked_linear_kernels();
    const Parallel parallel{threads, run_workers};
    const bool project = direction == HeadMaskedDirection::project;
    const std::vector<uint8_t> all = project ? kept : repeated();
    HeadFeatures f = features;
    if (!project) f = {1, f.parts * f.heads, f.head_dim, f.width};
    const HeadMaskedWeight kind{direction, type, f};
    const HeadMask keeping = mask(all, f.heads);
    auto packed = scratch(kernels.packed_bytes(kind));
    const HeadVectors vectors{weight.get(), transposed ? 1 : f.width, transposed ? f.count() : 1};
    kernels.pack(kind, vectors, keeping, packed.get(), parallel);
    Block out = block(tokens * (project ? f.count() : f.width) * size_of(type));
    const HeadMaskedProblem problem{kind,
                                    tokens,
                                    keeping,
                                    packed.get(),
                                    project ? input.get() : by_feature.get(),
                                    project && !index.empty() ? index.data() : nullptr,
                                    bias.get(),
                                    project ? nullptr : residual.get(),
                                    out.get(),
                                    nullptr};
    auto memory = scratch(threads * kernels.scratch_bytes(problem));
    kernels.run(problem, memory.get(), parallel);
    return out;
  }

  Tensors results(Isa isa, int64_t threads) const {
    set_active_isa(isa);
    const auto& kernels = active_head_masked_linear_kernels();
    Tensors tensors;
    const auto add = [&](const char* name, const Block& data, int64_t count) {
      std::vector<float> values(count);
      for (int64_t i = 0; i < count; ++i) values[i] = as_float(data.get(), type, i);
      tensors.emplace_back(std::move(values), name);
    };
    for (bool transposed : {false, true}) {
      add("project", run(HeadMaskedDirection::project, transposed, threads), tokens * features.count());
      add("reduce", run(HeadMaskedDirection::reduce, transposed, threads), tokens * features.width);
    }
    Block grad_weight = block(features.count() * features.width * size_of(type));
    Block grad_bias = block(features.count() * size_of(type));
    const HeadMaskedGradWeightProblem problem{type,
                                              features,
                                              tokens,
                                              mask(kept, features.heads),
                                              by_feature.get(),
                                              input.get(),
                                              index.empty() ? nullptr : index.data(),
                                              grad_weight.get(),
                                              grad_bias.get(),
                                              nullptr};
    auto memory = scratch(threads * kernels.grad_weight_scratch_bytes(problem));
    kernels.grad_weight(problem, memory.get(), {threads, run_workers});
    add("grad_weight", grad_weight, features.count() * features.width);
    add("grad_bias", grad_bias, features.count());
    return tensors;
  }
};

}  // namespace

void check(uint64_t seed) {
  const Case problem(seed);
  const Tensors expected = problem.results(Isa::baseline, 1);
  const float tolerance = problem.type == DataType::float32 ? 2e-4f : 6e-2f;
  for (int level = 0; level <= static_cast<int>(detected_isa()); ++level) {
    const Isa isa = static_cast<Isa>(level);
    const Tensors one = problem.results(isa, 1), two = problem.results(isa, 2);
    compare(expected, one, tolerance, isa_name(isa), seed);
    compare(one, two, 0.0f, isa_name(isa), seed);
  }
}
