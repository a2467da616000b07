#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "../kernels/cpu/isa.h"
#include "../kernels/cpu/quick_gelu.h"
#include "checks.h"
#include "huge_pages.h"
#include "parallel.h"
#include "torch_ops.h"

VLEFF_DISPATCH(QuickGeluKernels, quick_gelu_kernels)

// Linear layers through oneDNN as torch ships it. The ops `mkldnn::*` are private to torch: where they are
// missing, or do not take the dtype, torch's public ops do the same work in separate passes.
namespace vleff {
namespace {

constexpr const char* op = "fused_linear";

// Library kernels take other paths, with other bits, for fewer rows than this.
constexpr int64_t fewest_rows = 16;
// More rows than this are computed in pieces: oneDNN loses up to 40 % of its speed on 8,192 and more.
constexpr int64_t most_rows = 6144;
// So are larger results: a piece reuses memory, and the whole result can ask for huge pages.
constexpr int64_t most_bytes = most_reused_bytes;

bool is_packed(const Tensor& weight) {
  return weight.layout() == torch::headeronly::Layout::Mkldnn;
}

Tensor reorder(const Tensor& weight) {
  return call_op<Tensor>("mkldnn::_reorder_linear_weight", "", weight, std::optional<int64_t>());
}

struct OneDnnActivation {
  const char* attribute;
  const char* algorithm;
};

OneDnnActivation onednn_activation(const std::string& activation) {
  if (activation == "gelu") return {"gelu", "none"};
  if (activation == "gelu_tanh") return {"gelu", "tanh"};
  if (activation == "silu") return {"swish", ""};
  return {"none", ""};
}

// In place; on the CPU, contiguous, not float64.
void quick_gelu_(Tensor& tensor) {
  void* data = tensor.mutable_data_ptr();
  active_quick_gelu_kernels().run({data_type(tensor), tensor.numel(), data, data}, torch_parallel());
}

Tensor quick_gelu(const Tensor& tensor) {
  const Tensor factor = torch::stable::full({}, 1.702, ScalarType::Double);
  const Tensor gate =
      call_op<Tensor>("aten::sigmoid", "", call_op<Tensor>("aten::mul", "Tensor", tensor, factor));
  return call_op<Tensor>("aten::mul", "Tensor", tensor, gate);
}

Tensor onednn_linear(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                     const OptionalTensor& residual, const std::string& activation) {
  if (residual && activation == "none") {
    return call_op<Tensor>("mkldnn::_linear_pointwise", "binary", input, *residual, weight, bias,
                           std::string("add"));
  }
  const OneDnnActivation fused = onednn_activation(activation);
  Tensor out =
      call_op<Tensor>("mkldnn::_linear_pointwise", "", input, weight, bias, std::string(fused.attribute),
                      std::vector<std::optional<double>>(), std::optional<std::string>(fused.algorithm));
  if (activation == "relu") call_op<Tensor>("aten::relu_", "", out);  // oneDNN's makes 0 of NaN
  if (activation == "quick_gelu") quick_gelu_(out);
  return residual ? add(out, *residual) : out;
}

Tensor plain_linear(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                    const OptionalTensor& residual, const std::string& activation) {
  Tensor out = call_op<Tensor>("aten::linear", "", input, weight, bias);
  if (activation == "gelu") out = call_op<Tensor>("aten::gelu", "", out, std::string("none"));
  if (activation == "gelu_tanh") out = call_op<Tensor>("aten::gelu", "", out, std::string("tanh"));
  if (activation == "relu") out = call_op<Tensor>("aten::relu", "", out);
  if (activation == "silu") out = call_op<Tensor>("aten::silu", "", out);
  if (activation == "quick_gelu") out = quick_gelu(out);
  return residual ? add(out, *residual) : out;
}

bool onednn_works(ScalarType type) {
  try {
    if (type == ScalarType::BFloat16 && !call_op<bool>("mkldnn::_is_mkldnn_bf16_supported", "")) return false;
    const Tensor ones = torch::stable::full({fewest_rows, fewest_rows}, 1, type);
    onednn_linear(ones, reorder(ones), std::nullopt, ones, "none");
    onednn_linear(ones, ones, std::nullopt, std::nullopt, "gelu_tanh");
    return true;
  } catch (const std::exception&) {
    return false;
  }
}

// Whether torch's private ops exist and take this dtype on this processor. Asked of torch once.
bool onednn_supports(ScalarType type) {
  static const bool float32 = onednn_works(ScalarType::Float);
  static const bool bfloat16 = float32 && onednn_works(ScalarType::BFloat16);
  return (type == ScalarType::Float && float32) || (type == ScalarType::BFloat16 && bfloat16);
}

void check_same_type(const char* argument, const Tensor& tensor, const Tensor& input) {
  if (tensor.scalar_type() != input.scalar_type()) {
    reject(op, argument, name_of(input.scalar_type()) + ", the dtype of 'input'", describe(tensor));
  }
  if (tensor.device() != input.device()) {
    reject(op, argument, "a tensor on the device of 'input'", describe(tensor) + " elsewhere");
  }
}

void check(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
           const OptionalTensor& residual, const std::string& activation) {
  const ScalarType type = input.scalar_type();
  if (input.dim() < 1 || (type != ScalarType::Float && type != ScalarType::BFloat16 &&
                          type != ScalarType::Half && type != ScalarType::Double)) {
    reject(op, "input", "float32, bfloat16, float16 or float64 [..., in_features]", describe(input));
  }
  const int64_t in_features = input.size(input.dim() - 1);
  check_same_type("weight", weight, input);
  if (weight.dim() != 2 || weight.size(1) != in_features) {
    reject(op, "weight", text("[out_features, ", in_features, "]"), describe(weight));
  }
  const int64_t out_features = weight.size(0);
  if (bias) {
    check_same_type("bias", *bias, input);
    if (bias->dim() != 1 || bias->size(0) != out_features) {
      reject(op, "bias", text("[", out_features, "]"), describe(*bias));
    }
  }
  if (residual) {
    check_same_type("residual", *residual, input);
    bool fits = residual->dim() == input.dim() && residual->size(input.dim() - 1) == out_features;
    for (int64_t d = 0; fits && d + 1 < input.dim(); ++d) fits = residual->size(d) == input.size(d);
    if (!fits) {
      reject(op, "residual", text("the shape of 'input' with ", out_features, " as its last size"),
             describe(*residual));
    }
  }
  if (activation != "none" && activation != "gelu" && activation != "gelu_tanh" && activation != "relu" &&
      activation != "silu" && activation != "quick_gelu") {
    reject(op, "activation", "none, gelu, gelu_tanh, relu, silu or quick_gelu", "'" + activation + "'");
  }
}

// [rows, width], contiguous -> [fewest_rows, width], the new rows 0. By hand: with a few rows, calls of
// torch's ops would take a tenth of the time.
Tensor padded(const Tensor& rows) {
  Tensor all = torch::stable::new_empty(rows, {fewest_rows, rows.size(1)});
  const int64_t row_bytes = rows.size(1) * static_cast<int64_t>(rows.element_size());
  const int64_t bytes = rows.size(0) * row_bytes;
  char* data = static_cast<char*>(all.mutable_data_ptr());
  std::memcpy(data, rows.const_data_ptr(), bytes);
  std::memset(data + bytes, 0, fewest_rows * row_bytes - bytes);
  return all;
}

// input: [rows, in_features], residual: [rows, out_features]. No row's bits depend on `rows`.
template <class Linear>
Tensor by_pieces(const Linear& linear, const Tensor& input, const OptionalTensor& residual,
                 int64_t out_features) {
  const int64_t rows = input.size(0);
  if (rows < fewest_rows) {
    const OptionalTensor padded_residual = residual ? OptionalTensor(padded(*residual)) : std::nullopt;
    Tensor out = linear(padded(input), padded_residual);
    return torch::stable::narrow(out, 0, 0, rows);
  }
  const int64_t row_bytes = out_features * static_cast<int64_t>(input.element_size());
  const int64_t limit = std::clamp(most_bytes / row_bytes, 8 * fewest_rows, most_rows);
  const int64_t pieces = (rows + limit - 1) / limit;
  if (pieces == 1) return linear(input, residual);

  Tensor out = torch::stable::new_empty(input, {rows, out_features});
  prefer_huge_pages(out);
  for (int64_t piece = 0; piece < pieces; ++piece) {
    const int64_t begin = rows * piece / pieces, count = rows * (piece + 1) / pieces - begin;
    const auto part = [&](const Tensor& all) {
      Tensor borrowed = all;
      return torch::stable::narrow(borrowed, 0, begin, count);
    };
    Tensor target = part(out);
    torch::stable::copy_(target,
                         linear(part(input), residual ? OptionalTensor(part(*residual)) : std::nullopt));
  }
  return out;
}

Tensor fused_linear_cpu(Tensor input, Tensor weight, OptionalTensor bias, OptionalTensor residual,
                        std::string activation) {
  check(input, weight, bias, residual, activation);
  const int64_t in_features = weight.size(1), out_features = weight.size(0);
  std::vector<int64_t> out_shape(input.sizes().begin(), input.sizes().end());
  out_shape.back() = out_features;
  int64_t rows = 1;
  for (size_t d = 0; d + 1 < out_shape.size(); ++d) rows *= out_shape[d];
  if (rows == 0 || out_features == 0) return torch::stable::new_empty(input, out_shape);

  const bool onednn = is_packed(weight) || (in_features > 0 && onednn_supports(input.scalar_type()));
  if (onednn && !is_packed(weight)) weight = as_contiguous(weight);
  if (bias) bias = as_contiguous(*bias);
  const auto linear = [&](const Tensor& piece, const OptionalTensor& piece_residual) {
    return (onednn ? onednn_linear : plain_linear)(piece, weight, bias, piece_residual, activation);
  };
  const auto flat = [rows](const Tensor& tensor, int64_t width) {
    return as_contiguous(torch::stable::reshape(tensor, {rows, width}));
  };
  const OptionalTensor flat_residual =
      residual ? OptionalTensor(flat(*residual, out_features)) : std::nullopt;
  const Tensor out = by_pieces(linear, flat(input, in_features), flat_residual, out_features);
  return torch::stable::view(out, out_shape);
}

Tensor fused_linear_elsewhere(Tensor input, Tensor weight, OptionalTensor bias, OptionalTensor residual,
                              std::string activation) {
  check(input, weight, bias, residual, activation);
  return as_contiguous(plain_linear(input, weight, bias, residual, activation));
}

bool packs_linear_weight(ScalarType type) {
  return onednn_supports(type);
}

Tensor pack_linear_weight(Tensor weight) {
  if (weight.dim() != 2 || weight.numel() == 0 || is_packed(weight) ||
      !packs_linear_weight(weight.scalar_type())) {
    reject("pack_linear_weight", "weight",
           "a plain, non-empty [out_features, in_features] weight of a dtype that oneDNN takes here",
           describe(weight) + (is_packed(weight) ? " that is packed already" : ""));
  }
  return reorder(as_contiguous(weight));
}

Tensor unpack_linear_weight(Tensor packed) {
  if (!is_packed(packed)) {
    reject("unpack_linear_weight", "packed", "a weight from pack_linear_weight", describe(packed));
  }
  return call_op<Tensor>("aten::to_dense", "", packed, std::optional<ScalarType>(), std::optional<bool>());
}

}  // namespace
}  // namespace vleff

STABLE_TORCH_LIBRARY_IMPL(vleff, CPU, library) {
  library.impl("fused_linear", TORCH_BOX(&vleff::fused_linear_cpu));
  library.impl("pack_linear_weight", TORCH_BOX(&vleff::pack_linear_weight));
  library.impl("unpack_linear_weight", TORCH_BOX(&vleff::unpack_linear_weight));
}

// Chosen when an argument is packed.
STABLE_TORCH_LIBRARY_IMPL(vleff, MkldnnCPU, library) {
  library.impl("fused_linear", TORCH_BOX(&vleff::fused_linear_cpu));
  library.impl("pack_linear_weight", TORCH_BOX(&vleff::pack_linear_weight));
  library.impl("unpack_linear_weight", TORCH_BOX(&vleff::unpack_linear_weight));
}

STABLE_TORCH_LIBRARY_IMPL(vleff, CompositeExplicitAutograd, library) {
  library.impl("fused_linear", TORCH_BOX(&vleff::fused_linear_elsewhere));
  library.impl("packs_linear_weight", TORCH_BOX(&vleff::packs_linear_weight));
}
