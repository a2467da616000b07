#include <cmath>
#include <limits>
#include <tuple>
#include <utility>

#include "lanewise.h"
#include "number_formats.h"

// Conversions between types, and the approximations of the special function unit.
namespace emulation {
namespace {

template <class To>
struct Convert {
  template <class From>
  To operator()(From value) const {
    return static_cast<To>(value);
  }
};

struct Truncate {
  template <class T>
  T operator()(T value) const {
    return std::trunc(value);
  }
};
struct NearestEven {
  template <class T>
  T operator()(T value) const {
    return std::nearbyint(value);
  }
};
struct Floor {
  template <class T>
  T operator()(T value) const {
    return std::floor(value);
  }
};
struct Ceiling {
  template <class T>
  T operator()(T value) const {
    return std::ceil(value);
  }
};
struct Saturate {
  float operator()(float value) const { return value > 0 ? value < 1 ? value : 1 : 0; }
};

// To integers: out of range gives the nearest one, NaN gives 0.
template <class To, class Rounding>
struct ConvertToInteger {
  template <class From>
  To operator()(From value) const {
    if (std::isnan(value)) return 0;
    const From rounded = Rounding()(value);
    if (rounded <= static_cast<From>(std::numeric_limits<To>::min())) return std::numeric_limits<To>::min();
    if (rounded >= static_cast<From>(std::numeric_limits<To>::max())) return std::numeric_limits<To>::max();
    return static_cast<To>(rounded);
  }
};

struct ToBFloat16 {
  uint16_t operator()(float value) const { return bfloat16_bits(value); }
};
struct ToFloat16 {
  uint16_t operator()(float value) const { return float16_bits(value); }
};
struct FromBFloat16 {
  float operator()(uint16_t bits) const { return bfloat16_value(bits); }
};
struct FromFloat16 {
  float operator()(uint16_t bits) const { return float16_value(bits); }
};
template <class Narrow>
struct ToPair {
  uint32_t operator()(float high, float low) const { return uint32_t{Narrow()(high)} << 16 | Narrow()(low); }
};
struct ToTensorFloat32 {
  uint32_t operator()(float value) const { return (float_bits(value) + 0x1000u) & 0xFFFFE000u; }
};

// An approximation errs by as much as the PTX manual allows, up or down by a hash of the operand. Where the
// manual names the result, as for 0 and infinity, it is exact.
float erring(double exact, float operand, double relative_error) {
  const float rounded = static_cast<float>(exact);
  if (rounded == 0 || !std::isfinite(rounded) || operand == 0) return rounded;
  const uint32_t hash = float_bits(operand) * 0x9E3779B9u;
  return static_cast<float>(exact * (1 + (hash >> 31 ? relative_error : -relative_error)));
}
float flushed(float value) {
  return std::fabs(value) < std::numeric_limits<float>::min() ? std::copysign(0.0f, value) : value;
}
constexpr double two_last_places = 0x1p-23;  // two units in the last place, at least

struct PowerOfTwo {
  float operator()(float x) const { return erring(std::exp2(double{x}), x, two_last_places); }
};
struct LogarithmOfTwo {  // errs by 2^-22 absolutely between 0.5 and 2
  float operator()(float x) const {
    const double exact = std::log2(double{x});
    return x == 1                 ? 0.0f
           : std::fabs(exact) < 1 ? static_cast<float>(exact + erring(0x1p-22, x, 0x1p-1))
                                  : erring(exact, x, 0x1p-22);
  }
};
struct ApproximateReciprocal {
  float operator()(float x) const { return erring(1 / double{x}, x, 0x1p-23); }
};
struct ApproximateInverseRoot {
  float operator()(float x) const { return erring(1 / std::sqrt(double{x}), x, 0x1p-22); }
};
struct ApproximateRoot {
  float operator()(float x) const { return erring(std::sqrt(double{x}), x, 0x1p-22); }
};
struct ApproximateTangent {
  float operator()(float x) const { return erring(std::tanh(double{x}), x, 0x1p-11); }
};
struct ApproximateQuotient {
  float operator()(float a, float b) const { return erring(double{a} / b, b, two_last_places); }
};
template <class Function>
struct Flushing {
  template <class... T>
  float operator()(T... values) const {
    return flushed(Function()(flushed(values)...));
  }
};

// "mov.b32 %r1, {%rs1, %rs2}" and back: the first element stands in the low bits.
template <class Whole, class Half>
struct Pack {
  Whole operator()(Half low, Half high) const { return static_cast<Whole>(high) << 8 * sizeof(Half) | low; }
};
template <class Whole, class Half>
void unpack(Warp& warp, const Instruction& instruction, uint32_t lanes) {
  for (int lane = 0; lane < warp_size; ++lane) {
    if (!(lanes >> lane & 1)) continue;
    const Whole whole = warp.lanes<Whole>(instruction.places[2])[lane];
    warp.lanes<Half>(instruction.places[0])[lane] = static_cast<Half>(whole);
    warp.lanes<Half>(instruction.places[1])[lane] = static_cast<Half>(whole >> 8 * sizeof(Half));
  }
}

template <class Function, class... S>
struct Special {
  static void execute(Warp& warp, const Instruction& instruction, uint32_t lanes) {
    warp.block.statistics.special_function_operations += __builtin_popcount(lanes);
    Lanewise<Function, float, S...>::execute(warp, instruction, lanes);
  }
  static Opcode opcode() {
    Opcode opcode = Lanewise<Function, float, S...>::opcode();
    opcode.execute = execute;
    return opcode;
  }
};

template <class Function, class... S>
void add_special(Opcodes& opcodes, const std::string& name) {
  opcodes[name + ".f32"] = Special<Function, S...>::opcode();
  opcodes[name + ".ftz.f32"] = Special<Flushing<Function>, S...>::opcode();
}

using Integers = Types<int8_t, uint8_t, int16_t, uint16_t, int32_t, uint32_t, int64_t, uint64_t>;

}  // namespace

Execute resize(const std::string& from_type, int to_bits) {
  Execute result = nullptr;
  const bool is_signed = from_type[0] == 's';
  for_types(Integers(), [&]<class From>() {
    if (bits_of(from_type) != 8 * sizeof(From) || is_signed != std::is_signed_v<From>) return;
    for_types(Types<uint8_t, uint16_t, uint32_t, uint64_t>(), [&]<class To>() {
      if (to_bits == 8 * sizeof(To)) result = Lanewise<Convert<To>, To, From>::execute;
    });
  });
  return result;
}

void add_conversions(Opcodes& opcodes) {
  for_types(Integers(), [&]<class To>() {
    const std::string to = std::string("cvt.") + NameOf<To>::value + ".";
    for_types(Integers(), [&]<class From>() {
      opcodes[to + NameOf<From>::value] = Lanewise<Convert<To>, To, From>::opcode();
    });
  });
  for_types(Types<float, double>(), [&]<class F>() {
    const std::string name = NameOf<F>::value;
    for_types(Integers(), [&]<class I>() {
      const std::string integer = NameOf<I>::value;
      opcodes["cvt.rn." + name + "." + integer] = Lanewise<Convert<F>, F, I>::opcode();
      opcodes["cvt.rzi." + integer + "." + name] = Lanewise<ConvertToInteger<I, Truncate>, I, F>::opcode();
      opcodes["cvt.rni." + integer + "." + name] = Lanewise<ConvertToInteger<I, NearestEven>, I, F>::opcode();
      opcodes["cvt.rmi." + integer + "." + name] = Lanewise<ConvertToInteger<I, Floor>, I, F>::opcode();
      opcodes["cvt.rpi." + integer + "." + name] = Lanewise<ConvertToInteger<I, Ceiling>, I, F>::opcode();
    });
    opcodes["cvt.rzi." + name + "." + name] = Lanewise<Truncate, F, F>::opcode();
    opcodes["cvt.rni." + name + "." + name] = Lanewise<NearestEven, F, F>::opcode();
    opcodes["cvt.rmi." + name + "." + name] = Lanewise<Floor, F, F>::opcode();
    opcodes["cvt.rpi." + name + "." + name] = Lanewise<Ceiling, F, F>::opcode();
  });
  opcodes["cvt.f64.f32"] = Lanewise<Convert<double>, double, float>::opcode();
  opcodes["cvt.rn.f32.f64"] = Lanewise<Convert<float>, float, double>::opcode();
  opcodes["cvt.sat.f32.f32"] = Lanewise<Saturate, float, float>::opcode();
  opcodes["cvt.rn.bf16.f32"] = Lanewise<ToBFloat16, uint16_t, float>::opcode();
  opcodes["cvt.rn.f16.f32"] = Lanewise<ToFloat16, uint16_t, float>::opcode();
  opcodes["cvt.f32.bf16"] = Lanewise<FromBFloat16, float, uint16_t>::opcode();
  opcodes["cvt.f32.f16"] = Lanewise<FromFloat16, float, uint16_t>::opcode();
  opcodes["cvt.rn.bf16x2.f32"] = Lanewise<ToPair<ToBFloat16>, uint32_t, float, float>::opcode();
  opcodes["cvt.rn.f16x2.f32"] = Lanewise<ToPair<ToFloat16>, uint32_t, float, float>::opcode();
  opcodes["cvt.rna.tf32.f32"] = Lanewise<ToTensorFloat32, uint32_t, float>::opcode();

  opcodes["mov.b32/pack"] = Lanewise<Pack<uint32_t, uint16_t>, uint32_t, uint16_t, uint16_t>::opcode();
  opcodes["mov.b64/pack"] = Lanewise<Pack<uint64_t, uint32_t>, uint64_t, uint32_t, uint32_t>::opcode();
  opcodes["mov.b32/unpack"] = {unpack<uint32_t, uint16_t>, Kind::plain, {"b16", "b16"}, {"b32"}, false};
  opcodes["mov.b64/unpack"] = {unpack<uint64_t, uint32_t>, Kind::plain, {"b32", "b32"}, {"b64"}, false};

  add_special<PowerOfTwo, float>(opcodes, "ex2.approx");
  add_special<LogarithmOfTwo, float>(opcodes, "lg2.approx");
  add_special<ApproximateReciprocal, float>(opcodes, "rcp.approx");
  add_special<ApproximateInverseRoot, float>(opcodes, "rsqrt.approx");
  add_special<ApproximateRoot, float>(opcodes, "sqrt.approx");
  add_special<ApproximateTangent, float>(opcodes, "tanh.approx");
  add_special<ApproximateQuotient, float, float>(opcodes, "div.approx");
  add_special<ApproximateQuotient, float, float>(opcodes, "div.full");
}

}  // namespace emulation
