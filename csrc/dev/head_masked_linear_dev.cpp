#include <pybind11/stl.h>

#include "../kernels/cpu/head_masked_linear.h"
#include "arrays.h"

VLEFF_DISPATCH(HeadMaskedLinearKernels, head_masked_linear_kernels)

namespace vleff::dev {
namespace {

constexpr const char* op = "head_masked_linear";
using Mask = py::array_t<bool, py::array::c_style>;

// What all three products share; holds the arrays that `mask` and `index` point into.
struct Inputs {
  DataType type;
  py::dtype element;
  HeadFeatures features{};
  int64_t tokens;
  Integers offsets;
  Mask head_mask;
  OptionalIntegers rows;
  HeadMask mask{};
  const HeadMaskedLinearKernels* kernels;
  int64_t threads;

  // by_features: [tokens, features], or null where `weight` [features, width] says how many
  Inputs(const py::array& of_width, int64_t feature_count, const Integers& offsets_, const Mask& head_mask_,
         const OptionalIntegers& index, int64_t parts, const std::string& dtype, const std::string& isa,
         int64_t threads_)
      : type(parse_type(op, dtype)),
        element(array_type(type)),
        offsets(offsets_),
        head_mask(head_mask_),
        rows(index),
        kernels(&head_masked_linear_kernels_at(parse_level(op, isa))),
        threads(threads_) {
    if (threads < 1) reject(op, "threads", "at least 1", text(threads));
    check_array(op, "head_mask", head_mask, py::dtype::of<bool>(), {offsets.size() - 1, -1});
    const int64_t heads = head_mask.shape(1), width = of_width.shape(1);
    if (parts < 1) reject(op, "parts", "at least 1", text(parts));
    if (heads < 1 || feature_count < 1 || feature_count % (parts * heads) != 0 || width < 1) {
      reject(op, "head_mask", text("heads and parts that divide ", feature_count, " features"),
             text(heads, " heads and ", parts, " parts"));
    }
    features = {parts, heads, feature_count / (parts * heads), width};
    tokens = of_width.shape(0);
    if (rows) {
      check_array(op, "index", *rows, py::dtype::of<int32_t>(), {-1});
      check_index(op, "index", rows->data(), rows->size(), tokens);
      tokens = rows->size();
    }
    mask = {offsets.size() - 1, heads, offsets.data(), reinterpret_cast<const uint8_t*>(head_mask.data())};
    check_offsets(op, "offsets", mask.offsets, mask.batch, tokens, "offsets", INT64_MAX);
  }

  const int32_t* index() const { return rows ? rows->data() : nullptr; }
};

py::array dense(const py::array& array) {
  return py::array::ensure(array, py::array::c_style);
}

// Packs the weight and runs one direction; returns the result and the multiply-adds.
py::tuple multiply(const Inputs& inputs, HeadMaskedDirection direction, const py::array& input,
                   const py::array& weight, py::array out) {
  const HeadMaskedLinearKernels& kernels = *inputs.kernels;
  const bool project = direction == HeadMaskedDirection::project;
  const HeadMaskedWeight kind{direction, inputs.type, inputs.features};
  const py::array in = dense(input), plain = dense(weight);
  const HeadVectors vectors{plain.data(), project ? inputs.features.width : 1,
                            project ? 1 : inputs.features.count()};
  const auto packed = scratch(kernels.packed_bytes(kind));
  const Parallel parallel = std_threads(inputs.threads);
  kernels.pack(kind, vectors, inputs.mask, packed.get(), parallel);
  int64_t multiply_adds = 0;
  const HeadMaskedProblem problem{kind,          inputs.tokens, inputs.mask,
                                  packed.get(),  in.data(),     project ? inputs.index() : nullptr,
                                  nullptr,       nullptr,       out.mutable_data(),
                                  &multiply_adds};
  const auto memory = scratch(inputs.threads * kernels.scratch_bytes(problem));
  kernels.run(problem, memory.get(), parallel);
  return py::make_tuple(out, multiply_adds);
}

py::tuple project(const py::array& input, const py::array& weight, const Integers& offsets,
                  const Mask& head_mask, const OptionalIntegers& index, int64_t parts,
                  const std::string& dtype, const std::string& isa, int64_t threads) {
  check_array(op, "input", input, array_type(parse_type(op, dtype)), {-1, -1});
  check_array(op, "weight", weight, array_type(parse_type(op, dtype)), {-1, input.shape(1)});
  const Inputs inputs(input, weight.shape(0), offsets, head_mask, index, parts, dtype, isa, threads);
  return multiply(inputs, HeadMaskedDirection::project, input, weight,
                  py::array(inputs.element, {inputs.tokens, inputs.features.count()}));
}

py::tuple reduce(const py::array& input, const py::array& weight, const Integers& offsets,
                 const Mask& head_mask, const std::string& dtype, const std::string& isa, int64_t threads) {
  check_array(op, "input", input, array_type(parse_type(op, dtype)), {-1, -1});
  check_array(op, "weight", weight, array_type(parse_type(op, dtype)), {-1, input.shape(1)});
  py::array out(array_type(parse_type(op, dtype)), {input.shape(0), weight.shape(0)});
  const Inputs inputs(out, input.shape(1), offsets, head_mask, std::nullopt, 1, dtype, isa, threads);
  return multiply(inputs, HeadMaskedDirection::reduce, input, weight, out);
}

py::tuple grad_weight(const py::array& of_features, const py::array& of_width, const Integers& offsets,
                      const Mask& head_mask, const OptionalIntegers& index, int64_t parts,
                      const std::string& dtype, const std::string& isa, int64_t threads) {
  check_array(op, "of_width", of_width, array_type(parse_type(op, dtype)), {-1, -1});
  check_array(op, "of_features", of_features, array_type(parse_type(op, dtype)), {-1, -1});
  const Inputs inputs(of_width, of_features.shape(1), offsets, head_mask, index, parts, dtype, isa, threads);
  check_array(op, "of_features", of_features, inputs.element, {inputs.tokens, inputs.features.count()});
  const py::array left = dense(of_features), right = dense(of_width);
  py::array gradient(inputs.element, {inputs.features.count(), inputs.features.width});
  py::array bias(inputs.element, std::vector<py::ssize_t>{inputs.features.count()});
  int64_t multiply_adds = 0;
  const HeadMaskedGradWeightProblem problem{
      inputs.type,  inputs.features, inputs.tokens,           inputs.mask,         left.data(),
      right.data(), inputs.index(),  gradient.mutable_data(), bias.mutable_data(), &multiply_adds};
  const auto memory = scratch(inputs.threads * inputs.kernels->grad_weight_scratch_bytes(problem));
  inputs.kernels->grad_weight(problem, memory.get(), std_threads(inputs.threads));
  return py::make_tuple(gradient, bias, multiply_adds);
}

}  // namespace

void bind_head_masked_linear(py::module_& module) {
  const auto options = [](auto... own) {
    return std::make_tuple(own..., py::arg("dtype") = "float32", py::arg("isa") = "baseline",
                           py::arg("threads") = 1);
  };
  const auto define = [&](const char* name, auto function, const char* doc, auto arguments) {
    std::apply([&](auto... argument) { module.def(name, function, doc, argument...); }, arguments);
  };
  define("head_masked_project", project, "Returns (out [tokens, features], multiply-adds done).",
         options(py::arg("input"), py::arg("weight"), py::arg("offsets"), py::arg("head_mask"),
                 py::arg("index") = py::none(), py::arg("parts") = 1));
  define("head_masked_reduce", reduce, "Returns (out [tokens, width], multiply-adds done).",
         options(py::arg("input"), py::arg("weight"), py::arg("offsets"), py::arg("head_mask")));
  define("head_masked_grad_weight", grad_weight,
         "Returns (grad_weight [features, width], grad_bias [features], multiply-adds done).",
         options(py::arg("of_features"), py::arg("of_width"), py::arg("offsets"), py::arg("head_mask"),
                 py::arg("index") = py::none(), py::arg("parts") = 1));
  module.def(
      "head_masked_tile",
      [](const std::string& dtype, const std::string& isa) {
        const auto& kernels = head_masked_linear_kernels_at(parse_level(op, isa));
        return std::make_pair(kernels.lanes, kernels.elements_per_word(parse_type(op, dtype)));
      },
      "What columns and depth are rounded up to: (lanes, elements per word).", py::arg("dtype"),
      py::arg("isa"));
}

}  // namespace vleff::dev
