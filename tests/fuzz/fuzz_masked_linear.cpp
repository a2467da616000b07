// Random problems for the kernels over sparse weights: every instruction-set level of this processor must
// agree with the portable one, few tokens from the copy by steps with those in panels, a feed-forward pair
// with two linear layers, bit for bit. Places that make no sense must not lead outside of memory.
#include "fuzzing.h"
#include "kernels/cpu/masked_feed_forward.h"
#include "kernels/cpu/masked_linear.h"

VLEFF_DISPATCH(MaskedLinearKernels, masked_linear_kernels)
VLEFF_DISPATCH(MaskedFeedForwardKernels, masked_feed_forward_kernels)

namespace {

using namespace vleff;
using Block = std::unique_ptr<char[]>;

// Heap copies of exactly the size of the vectors.
template <class T>
struct Exact {
  std::unique_ptr<T[]> data;
  explicit Exact(const std::vector<T>& values) : data(new T[values.size()]) {
    std::copy(values.begin(), values.end(), data.get());
  }
};

struct Weight {
  MaskedStructure structure{};
  std::vector<Exact<int32_t>> starts;
  std::vector<Exact<uint8_t>> bytes;  // order, columns, columns by steps
  Block values, step_values;
  int64_t elements = 0;

  MaskedSteps steps() const { return {step_values.get(), bytes[2].data.get()}; }
};

struct Case {
  std::mt19937_64 random;
  DataType type;
  bool makes_sense;
  int64_t tokens;

  explicit Case(uint64_t seed) : random(seed) {
    type = static_cast<DataType>(below(3));
    makes_sense = below(4) != 0;
    tokens = below(3) ? 1 + below(140) : 1 + below(3);
  }
  int64_t below(int64_t bound) { return static_cast<int64_t>(random() % bound); }
  float number() { return std::normal_distribution<float>()(random); }

  Block numbers(int64_t count) {
    Block data = block(count * size_of(type));
    for (int64_t i = 0; i < count; ++i) put(data.get(), type, i, number());
    return data;
  }

  Weight weight(int64_t rows, int64_t columns) {
    Weight w;
    const int64_t chunk = 1 + below(256), width = 1 + below(256), density = below(101);
    const int64_t blocks = (columns + width - 1) / width;
    std::vector<int32_t> starts{0};
    std::vector<uint8_t> order, places, by_steps;
    std::vector<int64_t> sources;
    for (int64_t first = 0; first < rows; first += chunk) {
      const int64_t count = std::min(chunk, rows - first);
      for (int64_t b = 0; b < blocks; ++b) {
        std::vector<std::vector<uint8_t>> lists(count);
        std::vector<uint8_t> sorted(count);
        for (int64_t row = 0; row < count; ++row) {
          sorted[row] = static_cast<uint8_t>(row);
          for (int64_t column = 0; column < std::min(width, columns - b * width); ++column)
            if (below(100) < density) lists[row].push_back(static_cast<uint8_t>(column));
        }
        std::stable_sort(sorted.begin(), sorted.end(),
                         [&](uint8_t a, uint8_t b) { return lists[a].size() > lists[b].size(); });
        for (int64_t p = 0; p < count; p += slice_rows)
          for (size_t step = 0; step < lists[sorted[p]].size(); ++step)
            for (int64_t lane = p; lane < std::min(p + slice_rows, count); ++lane) {
              int64_t before = starts.back();
              for (int64_t earlier = 0; earlier < lane; ++earlier) before += lists[sorted[earlier]].size();
              if (step < lists[sorted[lane]].size()) {
                by_steps.push_back(lists[sorted[lane]][step]);
                sources.push_back(before + static_cast<int64_t>(step));
              }
            }
        for (uint8_t row : sorted) {
          order.push_back(row);
          places.insert(places.end(), lists[row].begin(), lists[row].end());
          starts.push_back(static_cast<int32_t>(places.size()));
        }
      }
    }
    if (!makes_sense)
      for (auto* list : {&order, &places, &by_steps})
        for (uint8_t& byte : *list) byte = static_cast<uint8_t>(below(256));
    w.elements = static_cast<int64_t>(places.size());
    w.starts.emplace_back(starts);
    for (const auto& list : {order, places, by_steps}) w.bytes.emplace_back(list);
    w.values = numbers(w.elements);
    w.step_values = block(w.elements * size_of(type));
    for (int64_t e = 0; e < w.elements; ++e)
      put(w.step_values.get(), type, e, as_float(w.values.get(), type, sources[e]));
    w.structure = {
        rows, columns, chunk, width, w.starts[0].data.get(), w.bytes[0].data.get(), w.bytes[1].data.get()};
    return w;
  }
};

struct Problem {
  Case c;
  int64_t inputs, hidden, outputs;
  Weight first, second;
  Block input, first_bias, second_bias, residual, grad;
  Activation activation;

  explicit Problem(uint64_t seed)
      : c(seed),
        inputs(1 + c.below(300)),
        hidden(1 + c.below(300)),
        outputs(1 + c.below(100)),
        first(c.weight(hidden, inputs)),
        second(c.weight(outputs, hidden)),
        input(c.numbers(c.tokens * inputs)),
        first_bias(c.numbers(hidden)),
        second_bias(c.numbers(outputs)),
        residual(c.numbers(c.tokens * outputs)),
        grad(c.numbers(c.tokens * hidden)),
        activation(static_cast<Activation>(c.below(6))) {}

  Block linear(const Weight& w, const char* from, const char* bias, const char* plus, Activation function,
               bool by_steps, int64_t threads) const {
    const auto& kernels = active_masked_linear_kernels();
    Block out = block(c.tokens * w.structure.rows * size_of(c.type));
    const MaskedLinearProblem problem{
        c.type, c.tokens, w.structure, w.values.get(), by_steps ? w.steps() : MaskedSteps{},
        from,   bias,     plus,        function,       out.get()};
    kernels.run(problem, scratch(threads * kernels.scratch_bytes(w.structure, c.tokens)).get(),
                {threads, run_workers});
    return out;
  }

  Tensors run(Isa isa, int64_t threads, bool by_steps) const {
    set_active_isa(isa);
    const Parallel parallel{threads, run_workers};
    const Block middle = linear(first, input.get(), first_bias.get(), nullptr, activation, by_steps, threads);
    const Block two =
        linear(second, middle.get(), second_bias.get(), residual.get(), Activation::none, by_steps, threads);
    Block pair = block(c.tokens * outputs * size_of(c.type));
    const auto& pairs = active_masked_feed_forward_kernels();
    pairs.run({c.type, c.tokens, first.structure, second.structure, first.values.get(), second.values.get(),
               input.get(), first_bias.get(), second_bias.get(), activation, residual.get(), pair.get()},
              scratch(threads * pairs.scratch_bytes(first.structure, second.structure)).get(), parallel);
    Block gradient = block(first.elements * 4);
    const auto& kernels = active_masked_linear_kernels();
    kernels.grad_values({c.type, c.tokens, first.structure, grad.get(), input.get(),
                         reinterpret_cast<float*>(gradient.get())},
                        scratch(threads * kernels.grad_values_scratch_bytes(first.structure)).get(),
                        parallel);
    Tensors tensors;
    const auto add = [&](const char* name, const Block& data, DataType type, int64_t count) {
      std::vector<float> values(count);
      for (int64_t i = 0; i < count; ++i) values[i] = as_float(data.get(), type, i);
      tensors.emplace_back(std::move(values), name);
    };
    add("middle", middle, c.type, c.tokens * hidden);
    add("out", two, c.type, c.tokens * outputs);
    add("out of the pair", pair, c.type, c.tokens * outputs);
    add("grad_values", gradient, DataType::float32, first.elements);
    return tensors;
  }
};

}  // namespace

void check(uint64_t seed) {
  const Problem problem(seed);
  const Tensors expected = problem.run(Isa::baseline, 1, false);
  const float tolerance = problem.c.type == DataType::float32 ? 2e-4f : 6e-2f;
  for (int level = 0; level <= static_cast<int>(detected_isa()); ++level) {
    const Isa isa = static_cast<Isa>(level);
    const Tensors one = problem.run(isa, 1, false), two = problem.run(isa, 2, true);
    if (!problem.c.makes_sense) continue;
    compare(expected, one, tolerance, isa_name(isa), seed);
    compare(one, two, 0.0f, isa_name(isa), seed);
    compare({one[1]}, {one[2]}, 0.0f, isa_name(isa), seed);
  }
}
