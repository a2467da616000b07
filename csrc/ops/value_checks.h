#pragma once
#include <cmath>
#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>

// Checks of arguments, raised as Python exceptions of the form
//   token_gather_attention: argument 'k_offsets': expected ..., got ...
// This file knows no torch; checks.h adds what needs tensors.
namespace vleff {

template <class... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream stream;
  (stream << ... << parts);
  return stream.str();
}

[[noreturn]] inline void reject(const char* op, const char* argument, const std::string& expected,
                                const std::string& got) {
  throw std::runtime_error(text(op, ": argument '", argument, "': expected ", expected, ", got ", got));
}

// Returns the longest sample's length. offsets: [batch + 1]
inline int64_t check_offsets(const char* op, const char* argument, const int32_t* offsets, int64_t batch,
                             int64_t total, const char* max_argument, int64_t max_length) {
  if (offsets[0] != 0) reject(op, argument, "offsets that start at 0", text(offsets[0], " at position 0"));
  int64_t longest = 0;
  for (int64_t b = 0; b < batch; ++b) {
    if (offsets[b + 1] < offsets[b]) {
      reject(op, argument, "offsets that never descend",
             text(offsets[b + 1], " after ", offsets[b], " at position ", b + 1));
    }
    const int64_t length = int64_t{offsets[b + 1]} - offsets[b];
    longest = length > longest ? length : longest;
  }
  if (offsets[batch] != total) {
    reject(op, argument, text("offsets that end at ", total, ", the number of rows"), text(offsets[batch]));
  }
  if (longest > max_length) {
    reject(op, max_argument, text("at least ", longest, ", the longest sample's length"), text(max_length));
  }
  return longest;
}

template <class Index>
void check_index(const char* op, const char* argument, const Index* index, int64_t count, int64_t rows) {
  for (int64_t i = 0; i < count; ++i) {
    if (index[i] < 0 || index[i] >= rows) {
      reject(op, argument, text("row numbers in [0, ", rows, ")"), text(index[i], " at position ", i));
    }
  }
}

// -inf is allowed: it hides a key.
inline void check_key_bias(const char* op, const char* argument, const float* bias, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    if (!(bias[i] < INFINITY)) {
      reject(op, argument, "finite numbers or -inf", text(bias[i], " at position ", i));
    }
  }
}

inline void check_dropout(const char* op, double dropout_p) {
  if (!(dropout_p >= 0 && static_cast<float>(dropout_p) < 1)) {
    reject(op, "dropout_p", "a probability in [0, 1)", text(dropout_p));
  }
}

inline void check_scale(const char* op, const char* argument, double scale) {
  if (!std::isfinite(static_cast<float>(scale))) reject(op, argument, "a finite number", text(scale));
}

}  // namespace vleff
