#include <pybind11/stl.h>

#include "../kernels/cpu/residual_layer_norm.h"
#include "arrays.h"

VLEFF_DISPATCH(ResidualLayerNormKernels, residual_layer_norm_kernels)

namespace vleff::dev {
namespace {

constexpr const char* op = "residual_layer_norm";

std::pair<py::array, py::array> run(const py::array& input, const std::optional<py::array>& residual,
                                    const py::array& weight, const py::array& bias, float eps,
                                    const std::string& dtype, const std::string& isa, int64_t threads) {
  const DataType type = parse_type(op, dtype);
  const py::dtype element = array_type(type);
  const Isa level = parse_level(op, isa);
  if (threads < 1) reject(op, "threads", "at least 1", text(threads));
  check_array(op, "input", input, element, {-1, -1});
  const py::ssize_t rows = input.shape(0), width = input.shape(1);
  if (width < 1) reject(op, "input", "a width of at least 1", text(width));
  if (residual) check_array(op, "residual", *residual, element, {rows, width});
  check_array(op, "weight", weight, element, {width});
  check_array(op, "bias", bias, element, {width});
  const auto dense = [](const py::array& array) { return py::array::ensure(array, py::array::c_style); };
  const py::array in = dense(input), scale = dense(weight), shift = dense(bias);
  const py::array added = residual ? dense(*residual) : py::array();

  py::array normalized(element, {rows, width}), sum(element, {rows, width});
  const ResidualLayerNormKernels& kernels = residual_layer_norm_kernels_at(level);
  const auto memory = scratch(threads * kernels.scratch_bytes(width));
  kernels.run({type, rows, width, in.data(), residual ? added.data() : nullptr, scale.data(), shift.data(),
               eps, normalized.mutable_data(), sum.mutable_data()},
              memory.get(), std_threads(threads));
  return {normalized, sum};
}

}  // namespace

void bind_residual_layer_norm(py::module_& module) {
  module.def("residual_layer_norm", run, "Returns (normalized, sum), both [rows, width].", py::arg("input"),
             py::arg("residual"), py::arg("weight"), py::arg("bias"), py::arg("eps"), py::kw_only(),
             py::arg("dtype") = "float32", py::arg("isa") = "baseline", py::arg("threads") = 1);
}

}  // namespace vleff::dev
