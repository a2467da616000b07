#pragma once
#include <cstddef>
#include <cstring>
#include <optional>
#include <utility>

#include "../kernels/cpu/head_masked_linear.h"
#include "../kernels/cpu/isa.h"
#include "checked_index.h"
#include "parallel.h"

VLEFF_DISPATCH(HeadMaskedLinearKernels, head_masked_linear_kernels)

// What the ops of head_masked_linear check and prepare.
namespace vleff {

inline void check_element_type(const char* op, const char* argument, const Tensor& tensor,
                               const char* shape_text, const Device& device = DeviceType::CPU) {
  check_tensor(op, argument, tensor, {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half},
               {any_size, any_size}, shape_text, device);
}

// Which heads the tokens keep; holds the tensors that `mask` points into. Values are checked on the CPU only.
struct CheckedMask {
  Tensor offsets;
  OptionalTensor head_mask;
  HeadMask mask;

  // `heads` where there is no mask to tell it
  CheckedMask(const char* op, const Tensor& offsets_, const OptionalTensor& head_mask_, int64_t tokens,
              int64_t heads, const Device& device = DeviceType::CPU)
      : offsets(offsets_), head_mask(head_mask_) {
    check_tensor(op, "offsets", offsets, {ScalarType::Int}, {any_size}, "[batch + 1]", device);
    if (offsets.numel() == 0) reject(op, "offsets", "at least one offset", describe(offsets));
    offsets = as_contiguous(offsets);
    mask.batch = offsets.numel() - 1;
    mask.heads = heads;
    mask.offsets = offsets.const_data_ptr<int32_t>();
    mask.kept = nullptr;
    if (device.is_cpu()) {
      check_offsets(op, "offsets", mask.offsets, mask.batch, tokens, "offsets", INT64_MAX);
    }
    if (!head_mask) return;
    check_tensor(op, "head_mask", *head_mask, {ScalarType::Bool}, {mask.batch, heads}, "[batch, heads]",
                 device);
    head_mask = as_contiguous(*head_mask);
    mask.kept = static_cast<const uint8_t*>(head_mask->const_data_ptr());
  }
};

// Heads of `features` features: what the mask has, or what is asked for, or any number that suits the
// kernels.
inline int64_t heads_of(const char* op, const OptionalTensor& head_mask, std::optional<int64_t> heads,
                        int64_t features, const Device& device = DeviceType::CPU) {
  if (head_mask) {
    check_tensor(op, "head_mask", *head_mask, {ScalarType::Bool}, {any_size, any_size}, "[batch, heads]",
                 device);
    if (heads && *heads != head_mask->size(1)) {
      reject(op, "heads", text(head_mask->size(1), ", as in 'head_mask'"), text(*heads));
    }
    return head_mask->size(1);
  }
  if (heads) return *heads;
  return features % 64 == 0 && features > 0 ? features / 64 : 1;
}

inline HeadFeatures head_features(const char* op, const char* argument, const Tensor& tensor,
                                  int64_t features, int64_t parts, int64_t heads, int64_t width) {
  if (parts < 1) reject(op, "parts", "at least 1", text(parts));
  if (heads < 1) reject(op, "head_mask", "at least one head", text(heads));
  if (parts > features || heads > features || features % (parts * heads) != 0 || width < 1) {
    reject(op, argument,
           text("features in equal blocks for ", parts, " parts of ", heads,
                " heads, and a width of at least 1"),
           describe(tensor));
  }
  if (features > INT32_MAX) reject(op, argument, "at most 2^31 - 1 features", describe(tensor));
  return {parts, heads, features / (parts * heads), width};
}

// A weight of which one dimension is contiguous; holds the tensor.
struct CheckedVectors {
  Tensor weight;
  HeadVectors vectors;

  CheckedVectors(const Tensor& weight_, HeadMaskedDirection direction) : weight(weight_) {
    if (weight.stride(0) != 1 && weight.stride(1) != 1) weight = torch::stable::contiguous(weight);
    // Where both are 1, one of the sizes is 1, too.
    const bool by_rows = weight.stride(1) == 1 && weight.size(0) > 1;
    const int64_t rows = by_rows ? weight.stride(0) : 1, columns = by_rows ? 1 : weight.stride(1);
    const bool project = direction == HeadMaskedDirection::project;
    vectors = {weight.const_data_ptr(), project ? rows : columns, project ? columns : rows};
  }
};

// A packed weight begins with a header that says what it is; the panels follow, 64-byte aligned.
struct PackedHeader {
  char name[8];
  int32_t direction, type, elements_per_word, lanes;
  int64_t parts, heads, head_dim, width;

  PackedHeader(const HeadMaskedWeight& weight, const HeadMaskedLinearKernels& kernels)
      : name{'h', 'e', 'a', 'd', 'p', 'a', 'c', 'k'},
        direction(static_cast<int32_t>(weight.direction)),
        type(static_cast<int32_t>(weight.type)),
        elements_per_word(static_cast<int32_t>(kernels.elements_per_word(weight.type))),
        lanes(static_cast<int32_t>(kernels.lanes)),
        parts(weight.features.parts),
        heads(weight.features.heads),
        head_dim(weight.features.head_dim),
        width(weight.features.width) {}
};
constexpr int64_t header_bytes = 64;
static_assert(sizeof(PackedHeader) <= header_bytes);

// A packed weight is uint8 [features that it makes, bytes]: header and panels, as many bytes as fill all
// rows.
inline bool is_packed(const Tensor& weight) {
  return weight.scalar_type() == ScalarType::Byte;
}

inline std::pair<int64_t, int64_t> packed_shape(const HeadMaskedWeight& weight) {
  const bool project = weight.direction == HeadMaskedDirection::project;
  const int64_t rows = project ? weight.features.count() : weight.features.width;
  const int64_t bytes = header_bytes + active_head_masked_linear_kernels().packed_bytes(weight);
  return {rows, (bytes + rows - 1) / rows};
}

// Reads the number of heads that a packed weight was made for; a wrong one does not fit the header later.
inline int64_t heads_of_packed(const Tensor& weight) {
  if (!weight.is_cpu() || !weight.is_contiguous() || weight.numel() < header_bytes) return 1;
  int64_t heads;
  std::memcpy(&heads, static_cast<const char*>(weight.const_data_ptr()) + offsetof(PackedHeader, heads),
              sizeof heads);
  return heads < 1 ? 1 : heads;
}

inline void check_packed(const char* op, const HeadMaskedWeight& expected, const Tensor& packed) {
  const auto [rows, bytes] = packed_shape(expected);
  const PackedHeader header(expected, active_head_masked_linear_kernels());
  if (packed.is_cpu() && packed.is_contiguous() && packed.size(0) == rows && packed.size(1) == bytes &&
      std::memcmp(packed.const_data_ptr(), &header, sizeof header) == 0) {
    return;
  }
  const HeadFeatures& f = expected.features;
  reject(op, "weight",
         text("one packed to ", expected.direction == HeadMaskedDirection::project ? "project" : "reduce",
              " with parts = ", f.parts, ", heads = ", f.heads, " and head_dim = ", f.head_dim,
              ", of the dtype of 'input', at instruction-set level ", isa_name(active_isa())),
         "another packed weight");
}

// What a call's weight is, after a check that it is plain or, on the CPU, packed and fits. `features` or
// `width` is known from the input; the weight tells the other.
inline HeadMaskedWeight checked_weight(const char* op, HeadMaskedDirection direction, const Tensor& input,
                                       const Tensor& weight, const OptionalTensor& head_mask, int64_t parts,
                                       std::optional<int64_t> heads, const Device& device = DeviceType::CPU) {
  const bool project = direction == HeadMaskedDirection::project;
  const char* shape = project ? "[parts * heads * head_dim, d_in]" : "[d_out, heads * head_dim]";
  const bool packed = device.is_cpu() && weight.dim() == 2 && is_packed(weight);
  if (!packed) {
    check_tensor(op, "weight", weight, {input.scalar_type()}, {any_size, input.size(1)}, shape, device);
  }
  if (parts < 1) reject(op, "parts", "at least 1", text(parts));
  const int64_t count = project ? weight.size(0) : input.size(1);
  const int64_t width = project ? input.size(1) : weight.size(0);
  if (packed && !head_mask && !heads) heads = heads_of_packed(weight);
  const int64_t head_count = heads_of(op, head_mask, heads, count / parts, device);
  const HeadMaskedWeight kind{direction, data_type(input),
                              head_features(op, "weight", weight, count, parts, head_count, width)};
  if (packed) check_packed(op, kind, weight);
  return kind;
}

// The weight in panels: the caller's, or made for this call.
class WeightPanels {
 public:
  WeightPanels(const HeadMaskedWeight& kind, const Tensor& weight, const HeadMask& mask) {
    if (is_packed(weight)) {
      data_ = static_cast<const char*>(weight.const_data_ptr()) + header_bytes;
      return;
    }
    const HeadMaskedLinearKernels& kernels = active_head_masked_linear_kernels();
    scratch_.emplace(kernels.packed_bytes(kind));
    const CheckedVectors vectors(weight, kind.direction);
    kernels.pack(kind, vectors.vectors, mask, scratch_->data(), torch_parallel());
    data_ = scratch_->data();
  }

  const void* data() const { return data_; }

 private:
  std::optional<Scratch> scratch_;
  const void* data_;
};

}  // namespace vleff
