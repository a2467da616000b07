#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdlib>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "../kernels/cpu/isa.h"
#include "../kernels/data_type.h"
#include "../kernels/parallel.h"
#include "../ops/value_checks.h"

// NumPy arrays as kernel operands. float32 arrays are float32; uint16 arrays hold the bits of bfloat16 or
// float16.
namespace vleff::dev {

namespace py = pybind11;
using Floats = py::array_t<float, py::array::c_style>;
using Integers = py::array_t<int32_t, py::array::c_style>;
using OptionalIntegers = std::optional<Integers>;

inline DataType parse_type(const char* op, const std::string& name) {
  if (name == "float32") return DataType::float32;
  if (name == "bfloat16") return DataType::bfloat16;
  if (name == "float16") return DataType::float16;
  reject(op, "dtype", "float32, bfloat16 or float16", "'" + name + "'");
}

inline Isa parse_level(const char* op, const std::string& name) {
  Isa isa;
  if (!parse_isa(name.c_str(), &isa) || isa > detected_isa()) {
    reject(op, "isa", text("a level of this processor, at most ", isa_name(detected_isa())),
           "'" + name + "'");
  }
  return isa;
}

inline py::dtype array_type(DataType type) {
  return type == DataType::float32 ? py::dtype::of<float>() : py::dtype::of<uint16_t>();
}

// sizes: -1 where any goes
inline void check_array(const char* op, const char* argument, const py::array& array, const py::dtype& type,
                        const std::vector<py::ssize_t>& sizes) {
  bool fits = array.dtype().is(type) && array.ndim() == static_cast<py::ssize_t>(sizes.size());
  for (size_t d = 0; fits && d < sizes.size(); ++d) {
    fits = sizes[d] < 0 || array.shape(static_cast<py::ssize_t>(d)) == sizes[d];
  }
  if (fits) return;
  std::string expected = std::string(py::str(type)) + " [", got = std::string(py::str(array.dtype())) + " [";
  for (size_t d = 0; d < sizes.size(); ++d) {
    expected += (d ? ", " : "") + (sizes[d] < 0 ? std::string("*") : text(sizes[d]));
  }
  for (py::ssize_t d = 0; d < array.ndim(); ++d) got += text(d ? ", " : "", array.shape(d));
  reject(op, argument, expected + "]", got + "]");
}

// Threads of its own, as many as asked for.
inline Parallel std_threads(int64_t threads) {
  return {threads, [](const Parallel&, int64_t workers, void (*body)(void*, int64_t), void* context) {
            std::vector<std::thread> others;
            for (int64_t worker = 1; worker < workers; ++worker) others.emplace_back(body, context, worker);
            if (workers > 0) body(context, 0);
            for (std::thread& other : others) other.join();
          }};
}

inline std::unique_ptr<void, decltype(&std::free)> scratch(int64_t bytes) {
  return {std::aligned_alloc(64, static_cast<size_t>(bytes / 64 * 64 + 64)), &std::free};
}

void bind_token_gather_attention(py::module_& module);
void bind_residual_layer_norm(py::module_& module);
void bind_head_masked_linear(py::module_& module);

}  // namespace vleff::dev
