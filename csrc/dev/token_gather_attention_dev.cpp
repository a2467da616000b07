#include <pybind11/stl.h>

#include "../kernels/cpu/token_gather_attention.h"
#include "arrays.h"

VLEFF_DISPATCH(TokenGatherAttentionKernels, token_gather_attention_kernels)

namespace vleff::dev {
namespace {

constexpr const char* op = "token_gather_attention";

// The arguments that forward and backward share, checked; holds the arrays that `problem` points into.
struct Inputs {
  AttentionProblem problem{};
  py::dtype element;
  Integers q_offsets, k_offsets;
  OptionalIntegers q_index, k_index;
  std::optional<py::array_t<bool, py::array::c_style>> head_mask;
  std::optional<Floats> key_bias;
  int64_t max_q, max_k;
  const TokenGatherAttentionKernels* kernels;
  int64_t threads;

  Inputs(const py::array& q, const py::array& k, const py::array& v, Integers q_offsets_, Integers k_offsets_,
         const py::kwargs& options)
      : q_offsets(std::move(q_offsets_)), k_offsets(std::move(k_offsets_)) {
    const auto option = [&](const char* name, auto fallback) {
      return options.contains(name) ? options[name].cast<decltype(fallback)>() : fallback;
    };
    problem.type = parse_type(op, option("dtype", std::string("float32")));
    element = array_type(problem.type);
    q_index = option("q_index", OptionalIntegers());
    k_index = option("k_index", OptionalIntegers());
    head_mask = option("head_mask", std::optional<py::array_t<bool, py::array::c_style>>());
    key_bias = option("key_bias", std::optional<Floats>());
    threads = option("threads", int64_t{1});
    if (threads < 1) reject(op, "threads", "at least 1", text(threads));
    kernels = &token_gather_attention_kernels_at(parse_level(op, option("isa", std::string("baseline"))));

    check_array(op, "q", q, element, {-1, -1, -1});
    problem.heads = q.shape(1);
    problem.head_dim = q.shape(2);
    if (problem.head_dim < 1 || problem.head_dim > 256) {
      reject(op, "q", "a head_dim from 1 to 256", text(problem.head_dim));
    }
    check_array(op, "k", k, element, {-1, q.shape(1), q.shape(2)});
    check_array(op, "v", v, element, {k.shape(0), q.shape(1), q.shape(2)});
    problem.q = rows("q", q);
    problem.k = rows("k", k);
    problem.v = rows("v", v);
    problem.batch = q_offsets.size() - 1;
    check_array(op, "q_offsets", q_offsets, py::dtype::of<int32_t>(), {-1});
    check_array(op, "k_offsets", k_offsets, py::dtype::of<int32_t>(), {q_offsets.size()});
    if (problem.batch < 0) reject(op, "q_offsets", "[batch + 1]", "[0]");
    problem.total_q = total("q_index", q_index, q.shape(0), &problem.q_index);
    problem.total_k = total("k_index", k_index, k.shape(0), &problem.k_index);
    const int64_t any = INT64_MAX;
    max_q =
        check_offsets(op, "q_offsets", q_offsets.data(), problem.batch, problem.total_q, "q_offsets", any);
    max_k =
        check_offsets(op, "k_offsets", k_offsets.data(), problem.batch, problem.total_k, "k_offsets", any);
    problem.q_offsets = q_offsets.data();
    problem.k_offsets = k_offsets.data();
    if (head_mask) {
      check_array(op, "head_mask", *head_mask, py::dtype::of<bool>(), {problem.batch, problem.heads});
      problem.head_mask = reinterpret_cast<const uint8_t*>(head_mask->data());
    }
    if (key_bias) {
      check_array(op, "key_bias", *key_bias, py::dtype::of<float>(), {problem.total_k});
      check_key_bias(op, "key_bias", key_bias->data(), problem.total_k);
      problem.key_bias = key_bias->data();
    }
    const double scale = option("scale", 1.0), dropout_p = option("dropout_p", 0.0);
    check_scale(op, "scale", scale);
    check_dropout(op, dropout_p);
    problem.scale = static_cast<float>(scale);
    problem.dropout_p = static_cast<float>(dropout_p);
    problem.causal = option("causal", false);
    problem.seed = option("seed", uint64_t{0});
  }

 private:
  HeadRows rows(const char* argument, const py::array& array) const {
    const py::ssize_t size = size_of(problem.type);
    if (array.shape(2) > 1 && array.strides(2) != size)
      reject(op, argument, "a contiguous last dimension", "gaps");
    return {array.data(), array.strides(0) / size, array.strides(1) / size};
  }
  int64_t total(const char* argument, const OptionalIntegers& index, int64_t stored,
                const int32_t** data) const {
    if (!index) return stored;
    check_array(op, argument, *index, py::dtype::of<int32_t>(), {-1});
    check_index(op, argument, index->data(), index->size(), stored);
    *data = index->data();
    return index->size();
  }
};

py::tuple forward(const py::array& q, const py::array& k, const py::array& v, const Integers& q_offsets,
                  const Integers& k_offsets, const py::kwargs& options) {
  const Inputs inputs(q, k, v, q_offsets, k_offsets, options);
  const AttentionProblem& problem = inputs.problem;
  py::array out(inputs.element, {problem.total_q, problem.heads, problem.head_dim});
  Floats lse({problem.total_q, problem.heads}), importance({problem.total_k, problem.heads});
  const auto memory =
      scratch(inputs.threads * inputs.kernels->forward_scratch_bytes(problem, inputs.max_q, inputs.max_k));
  inputs.kernels->forward(problem, {out.mutable_data(), lse.mutable_data(), importance.mutable_data()},
                          inputs.max_q, inputs.max_k, memory.get(), std_threads(inputs.threads));
  return py::make_tuple(out, lse, importance);
}

py::tuple backward(const py::array& grad_out, const py::array& out, const Floats& lse, const py::array& q,
                   const py::array& k, const py::array& v, const Integers& q_offsets,
                   const Integers& k_offsets, const py::kwargs& options) {
  const Inputs inputs(q, k, v, q_offsets, k_offsets, options);
  const AttentionProblem& problem = inputs.problem;
  const std::vector<py::ssize_t> queries = {problem.total_q, problem.heads, problem.head_dim};
  const std::vector<py::ssize_t> keys = {problem.total_k, problem.heads, problem.head_dim};
  check_array(op, "grad_out", grad_out, inputs.element, queries);
  check_array(op, "out", out, inputs.element, queries);
  check_array(op, "lse", lse, py::dtype::of<float>(), {problem.total_q, problem.heads});
  const py::array dense_grad = py::array::ensure(grad_out, py::array::c_style);
  const py::array dense_out = py::array::ensure(out, py::array::c_style);
  Floats grad_q(queries), grad_k(keys), grad_v(keys), grad_key_bias({problem.heads, problem.total_k});
  const auto memory =
      scratch(inputs.threads * inputs.kernels->backward_scratch_bytes(problem, inputs.max_q, inputs.max_k));
  inputs.kernels->backward(
      problem,
      {dense_grad.data(), nullptr, dense_out.data(), lse.data(), DataType::float32, grad_q.mutable_data(),
       grad_k.mutable_data(), grad_v.mutable_data(), grad_key_bias.mutable_data()},
      inputs.max_q, inputs.max_k, memory.get(), std_threads(inputs.threads));
  return py::make_tuple(grad_q, grad_k, grad_v, grad_key_bias);
}

}  // namespace

void bind_token_gather_attention(py::module_& module) {
  const char* options =
      " Options: dtype, q_index, k_index, head_mask, key_bias, scale, causal, dropout_p, seed, isa, "
      "threads.";
  module.def("token_gather_attention_forward", forward,
             (std::string("(q, k, v, q_offsets, k_offsets) -> (out, lse, importance).") + options).c_str());
  module.def(
      "token_gather_attention_backward", backward,
      (std::string("(grad_out, out, lse, q, k, v, q_offsets, k_offsets) -> float32 gradients of the batch's "
                   "rows: (q, k, v, key_bias [heads, total_k]).") +
       options)
          .c_str());
}

}  // namespace vleff::dev
