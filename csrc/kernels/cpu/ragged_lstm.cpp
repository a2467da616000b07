#include "ragged_lstm.h"

#include "activation_functions.h"
#include "element_types.h"
#include "ragged_rows.h"
#include "tasks.h"

// A task is a direction of a group of samples: their rows of one step are multiplied with the weight
// together. Groups differ little in length, and their samples drop out at the end of the list as they end.
namespace vleff::VLEFF_ISA {
namespace {

constexpr int64_t gate_count = 4;
enum Gate { input_gate, forget_gate, candidate, output_gate };

struct Sizes {
  int64_t width;         // of h, padded to full vectors
  int64_t gates;         // of the four gates
  int64_t groups, most;  // samples of a group, at most

  Sizes(const LstmProblem& problem, int64_t threads)
      : width(round_up(problem.width, lanes)), gates(gate_count * width) {
    const int64_t wanted = (threads + problem.directions - 1) / problem.directions;
    groups = max(1, min(wanted, (problem.batch + tile_rows - 1) / tile_rows));
    most = (problem.batch + groups - 1) / groups;
  }
};

// The samples of a task, longest first, and where a step's rows stand.
struct Group {
  const LstmProblem& problem;
  int64_t first, step, direction;

  Group(const LstmProblem& p, const Sizes& sizes, int64_t task)
      : problem(p), first(task / p.directions), step(sizes.groups), direction(task % p.directions) {}

  int64_t count() const { return max(0, (problem.batch - first + step - 1) / step); }
  int64_t sample(int64_t member) const { return problem.order[first + member * step]; }
  int64_t length(int64_t member) const {
    const int64_t of = sample(member);
    return int64_t{problem.offsets[of + 1]} - problem.offsets[of];
  }
  int64_t longest() const { return count() > 0 ? length(0) : 0; }
  // Members that have a row at this time.
  int64_t active(int64_t time, int64_t most) const {
    while (most > 0 && length(most - 1) <= time) --most;
    return most;
  }
  // Number of the member's row at this time among the rows of all directions.
  int64_t row(int64_t member, int64_t time) const {
    const int64_t of = sample(member);
    const int64_t token = direction == 0 ? problem.offsets[of] + time : problem.offsets[of + 1] - 1 - time;
    return token * problem.directions + direction;
  }
  int64_t initial_row(int64_t member) const { return sample(member) * problem.directions + direction; }
};

template <class T>
RaggedRows<T> weight_rows(const LstmProblem& problem, int64_t direction, int64_t row) {
  const int64_t width = problem.width;
  return {static_cast<const T*>(problem.weight) + (direction * gate_count * width + row) * width, width,
          nullptr, width};
}

template <class T>
Float rounded(Float value) {
  if constexpr (sizeof(T) == sizeof(float))
    return value;
  else
    return widen(narrow(value, T{}), T{});
}

// A vector of elements of a left operand, from element `place` of its row on.
template <class T, class Product>
void store_operand(Word* row, int64_t place, Float value) {
  if constexpr (Product::elements_per_word == 1)
    store(reinterpret_cast<float*>(row) + place, rounded<T>(value));
  else
    store(reinterpret_cast<T*>(row) + place, value);
}

template <class Product>
void multiply_all(const Word* left, int64_t stride, const Word* panels, Result result, int64_t rows,
                  int64_t columns, int64_t depth) {
  for_each_depth_block(0, depth, [&](int64_t first, int64_t count) {
    multiply<Product>({left + first, stride, 1}, packed_panels(panels, depth), result, rows, columns, count,
                      first > 0, first);
  });
}

template <class T, class Product>
struct Forward {
  // A panel's columns are the four gates of a vector of units, one after the other. Lanes beyond the width
  // have weights, gates and states 0.
  static int64_t depth(const LstmProblem& problem) { return words<Product>(problem.width); }
  static int64_t direction_words(const LstmProblem& problem, const Sizes& sizes) {
    return panel_words(sizes.gates, depth(problem));
  }

  struct Own {
    Word* hidden;        // [most, words(width)]
    float *cell, *tile;  // [most, width], [most, gates]

    Own(Arena& arena, const Sizes& sizes)
        : hidden(arena.take<Word>(sizes.most * words<Product>(sizes.width))),
          cell(arena.take<float>(sizes.most * sizes.width)),
          tile(arena.take<float>(sizes.most * sizes.gates)) {}
  };

  static int64_t scratch_bytes(const LstmProblem& problem, int64_t threads) {
    const Sizes sizes(problem, threads);
    Arena shared(nullptr), own(nullptr);
    shared.take<Word>(problem.directions * direction_words(problem, sizes));
    Own(own, sizes);
    return shared.used() + threads * own.used();
  }

  static void run(const LstmProblem& problem, const LstmOutput& output, void* scratch,
                  const Parallel& parallel) {
    const Sizes sizes(problem, parallel.threads);
    Arena arena(scratch);
    Word* panels = arena.take<Word>(problem.directions * direction_words(problem, sizes));
    char* workers = static_cast<char*>(scratch) + arena.used();
    const int64_t blocks = sizes.gates / lanes;
    for_each_task(parallel, problem.directions * blocks, [&](int64_t, int64_t task, int64_t) {
      pack(problem, task / blocks, task % blocks, panels + task / blocks * direction_words(problem, sizes));
    });
    Arena size(nullptr);
    Own(size, sizes);
    for_each_task(parallel, problem.directions * sizes.groups, [&](int64_t worker, int64_t task, int64_t) {
      Arena memory(workers + worker * size.used());
      const Group group(problem, sizes, task);
      run_group(group, sizes, output, panels + group.direction * direction_words(problem, sizes),
                Own(memory, sizes));
    });
  }

  // block: gate number block % 4 of the vector of units number block / 4.
  static void pack(const LstmProblem& problem, int64_t direction, int64_t block, Word* panels) {
    const int64_t unit = block / gate_count * lanes, gate = block % gate_count;
    const int64_t column = block * lanes;
    Word* place = panels + column / panel_width * panel_width * depth(problem) + column % panel_width;
    pack_transposed<Product>(weight_rows<T>(problem, direction, gate * problem.width + unit),
                             min(lanes, problem.width - unit), depth(problem), place);
  }

  static void run_group(const Group& group, const Sizes& sizes, const LstmOutput& output, const Word* panels,
                        const Own& own) {
    const LstmProblem& problem = group.problem;
    const int64_t hidden_stride = words<Product>(sizes.width);
    const T* initial_hidden = static_cast<const T*>(problem.initial_hidden);
    int64_t active = group.count();
    for (int64_t member = 0; member < active; ++member) {
      const int64_t begin = group.initial_row(member) * problem.width;
      for (int64_t unit = 0; unit < sizes.width; unit += lanes) {
        const auto initial = [&](const auto* values) {
          return values ? load_first(values + begin + unit, problem.width - unit) : Float{};
        };
        store_operand<T, Product>(own.hidden + member * hidden_stride, unit, initial(initial_hidden));
        store(own.cell + member * sizes.width + unit, initial(problem.initial_cell));
      }
    }
    for (int64_t time = 0; time < group.longest(); ++time) {
      active = group.active(time, active);
      multiply_all<Product>(own.hidden, hidden_stride, panels, {own.tile, sizes.gates}, active, sizes.gates,
                            depth(problem));
      for (int64_t member = 0; member < active; ++member)
        step(problem, group.row(member, time), output, own.tile + member * sizes.gates,
             own.cell + member * sizes.width, own.hidden + member * hidden_stride);
    }
  }

  static void step(const LstmProblem& problem, int64_t row, const LstmOutput& output, const float* tile,
                   float* cell, Word* hidden) {
    const int64_t width = problem.width;
    const T* gates = static_cast<const T*>(problem.gates) + row * gate_count * width;
    T* activated = output.activated ? static_cast<T*>(output.activated) + row * gate_count * width : nullptr;
    for (int64_t unit = 0; unit < width; unit += lanes) {
      const int64_t left = width - unit;
      Float values[gate_count];
      for (int64_t gate = 0; gate < gate_count; ++gate) {
        const Float sum =
            load(tile + unit * gate_count + gate * lanes) + load_first(gates + gate * width + unit, left);
        values[gate] = gate == candidate ? hyperbolic_tangent(sum) : logistic(sum);
        if (activated) store_first(activated + gate * width + unit, values[gate], left);
      }
      const Float state = values[forget_gate] * load(cell + unit) + values[input_gate] * values[candidate];
      const Float result = values[output_gate] * hyperbolic_tangent(state);
      store(cell + unit, state);
      store_operand<T, Product>(hidden, unit, result);
      store_first(output.cell + row * width + unit, state, left);
      store_first(static_cast<T*>(output.hidden) + row * width + unit, result, left);
    }
  }
};

template <class T, class Product>
struct Backward {
  static int64_t depth(const LstmProblem& problem) { return words<Product>(gate_count * problem.width); }
  static int64_t direction_words(const LstmProblem& problem) {
    return panel_words(problem.width, depth(problem));
  }

  struct Own {
    Word* gates;           // [most, gates_stride]: gradients, as a left operand
    float *hidden, *cell;  // [most, width]: gradients that come from the next row

    Own(Arena& arena, const LstmProblem& problem, const Sizes& sizes)
        : gates(arena.take<Word>(sizes.most * gates_stride(problem))),
          hidden(arena.take<float>(sizes.most * sizes.width)),
          cell(arena.take<float>(sizes.most * sizes.width)) {}

    static int64_t gates_stride(const LstmProblem& problem) { return round_up(depth(problem), lanes); }
  };

  static int64_t scratch_bytes(const LstmProblem& problem, int64_t threads) {
    const Sizes sizes(problem, threads);
    Arena shared(nullptr), own(nullptr);
    shared.take<Word>(problem.directions * direction_words(problem));
    Own(own, problem, sizes);
    return shared.used() + threads * own.used();
  }

  static void run(const LstmProblem& problem, const LstmGradient& gradient, void* scratch,
                  const Parallel& parallel) {
    const Sizes sizes(problem, parallel.threads);
    Arena arena(scratch);
    Word* panels = arena.take<Word>(problem.directions * direction_words(problem));
    char* workers = static_cast<char*>(scratch) + arena.used();
    for_each_task(parallel, problem.directions, [&](int64_t, int64_t direction, int64_t) {
      pack_right<Product>(weight_rows<T>(problem, direction, 0), gate_count * problem.width, depth(problem),
                          panels + direction * direction_words(problem));
    });
    Arena size(nullptr);
    Own(size, problem, sizes);
    for_each_task(parallel, problem.directions * sizes.groups, [&](int64_t worker, int64_t task, int64_t) {
      Arena memory(workers + worker * size.used());
      const Group group(problem, sizes, task);
      run_group(group, sizes, gradient, panels + group.direction * direction_words(problem),
                Own(memory, problem, sizes));
    });
  }

  static void run_group(const Group& group, const Sizes& sizes, const LstmGradient& gradient,
                        const Word* panels, const Own& own) {
    const LstmProblem& problem = group.problem;
    const int64_t count = group.count(), stride = Own::gates_stride(problem);
    fill_rows(own.hidden, 1, 0, count * sizes.width, 0.0f);
    fill_rows(own.cell, 1, 0, count * sizes.width, 0.0f);
    for (int64_t time = group.longest() - 1; time >= 0; --time) {
      const int64_t active = group.active(time, count);
      for (int64_t member = 0; member < active; ++member)
        step(group, member, time, gradient, own.hidden + member * sizes.width,
             own.cell + member * sizes.width, own.gates + member * stride);
      multiply_all<Product>(own.gates, stride, panels, {own.hidden, sizes.width}, active, problem.width,
                            depth(problem));
    }
    for (int64_t member = 0; member < count; ++member) {
      const int64_t begin = group.initial_row(member) * problem.width;
      for (int64_t unit = 0; unit < problem.width; unit += lanes) {
        const int64_t left = problem.width - unit, place = member * sizes.width + unit;
        store_first(static_cast<T*>(gradient.grad_initial_hidden) + begin + unit, load(own.hidden + place),
                    left);
        store_first(gradient.grad_initial_cell + begin + unit, load(own.cell + place), left);
      }
    }
  }

  static void step(const Group& group, int64_t member, int64_t time, const LstmGradient& gradient,
                   const float* grad_hidden, float* grad_cell, Word* operand) {
    const LstmProblem& problem = group.problem;
    const int64_t width = problem.width, row = group.row(member, time);
    const T* activated = static_cast<const T*>(gradient.activated) + row * gate_count * width;
    const T* from_outside = static_cast<const T*>(gradient.grad_hidden) + row * width;
    T* grad_gates = static_cast<T*>(gradient.grad_gates) + row * gate_count * width;
    const float* before = time > 0               ? gradient.cell + group.row(member, time - 1) * width
                          : problem.initial_cell ? problem.initial_cell + group.initial_row(member) * width
                                                 : nullptr;
    for (int64_t unit = 0; unit < width; unit += lanes) {
      const int64_t left = width - unit;
      const auto gate = [&](Gate number) { return load_first(activated + number * width + unit, left); };
      const Float i = gate(input_gate), f = gate(forget_gate), g = gate(candidate), o = gate(output_gate);
      const Float state = hyperbolic_tangent(load_first(gradient.cell + row * width + unit, left));
      const Float grad = load_first(from_outside + unit, left) + load(grad_hidden + unit);
      const Float of_cell = load(grad_cell + unit) + grad * o * (1.0f - state * state);
      const Float previous = before ? load_first(before + unit, left) : Float{};
      const auto put = [&](Gate number, Float value) {
        store_first(grad_gates + number * width + unit, value, left);
        put_operand(operand, number * width + unit, value, left);
      };
      put(input_gate, of_cell * g * i * (1.0f - i));
      put(forget_gate, of_cell * previous * f * (1.0f - f));
      put(candidate, of_cell * i * (1.0f - g * g));
      put(output_gate, grad * state * o * (1.0f - o));
      store(grad_cell + unit, of_cell * f);
    }
  }

  static void put_operand(Word* row, int64_t place, Float value, int64_t count) {
    if constexpr (Product::elements_per_word == 1)
      store_first(reinterpret_cast<float*>(row) + place, rounded<T>(value), count);
    else
      store_first(reinterpret_cast<T*>(row) + place, value, count);
  }
};

template <template <class, class> class Pass>
int64_t scratch_bytes(const LstmProblem& problem, int64_t threads) {
  return with_type<Pass>(problem.type, [&](auto pass) { return pass.scratch_bytes(problem, threads); });
}

template <template <class, class> class Pass, class Arguments>
void run(const LstmProblem& problem, const Arguments& arguments, void* scratch, const Parallel& parallel) {
  with_type<Pass>(problem.type, [&](auto pass) { pass.run(problem, arguments, scratch, parallel); });
}

}  // namespace

extern const RaggedLstmKernels ragged_lstm_kernels = {scratch_bytes<Forward>, run<Forward, LstmOutput>,
                                                      scratch_bytes<Backward>, run<Backward, LstmGradient>};

}  // namespace vleff::VLEFF_ISA
