#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

// The floating-point formats of the machine, as numbers of the host.
namespace emulation {

inline uint32_t float_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline float float_value(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// To nearest, ties to even; NaN is the one that PTX makes.
inline uint16_t bfloat16_bits(float value) {
  if (std::isnan(value)) return 0x7FFF;
  const uint32_t bits = float_bits(value);
  return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}
inline float bfloat16_value(uint32_t bits) {
  return float_value(bits << 16);
}
inline uint16_t float16_bits(float value) {
  if (std::isnan(value)) return 0x7FFF;
  const _Float16 rounded = static_cast<_Float16>(value);
  uint16_t bits;
  memcpy(&bits, &rounded, sizeof bits);
  return bits;
}
inline float float16_value(uint32_t bits) {
  const uint16_t narrow = static_cast<uint16_t>(bits);
  _Float16 value;
  memcpy(&value, &narrow, sizeof value);
  return static_cast<float>(value);
}
// The lowest 13 bits are ignored.
inline float tensor_float32_value(uint32_t bits) {
  return float_value(bits & 0xFFFFE000u);
}

}  // namespace emulation
