#pragma once
#include <cstring>
#include <string>

#include "opcodes.h"

// Opcodes that each lane executes for itself, as functions of its values.
namespace emulation {

// A type of PTX by its name: the element that a register holds.
template <class T>
struct NameOf;

#define EMULATION_TYPE(type, name)             \
  template <>                                  \
  struct NameOf<type> {                        \
    static constexpr const char* value = name; \
  };
EMULATION_TYPE(bool, "pred")
EMULATION_TYPE(int8_t, "s8")
EMULATION_TYPE(uint8_t, "u8")
EMULATION_TYPE(int16_t, "s16")
EMULATION_TYPE(uint16_t, "u16")
EMULATION_TYPE(int32_t, "s32")
EMULATION_TYPE(uint32_t, "u32")
EMULATION_TYPE(int64_t, "s64")
EMULATION_TYPE(uint64_t, "u64")
EMULATION_TYPE(float, "f32")
EMULATION_TYPE(double, "f64")
#undef EMULATION_TYPE

// Reads and writes operands: predicates are the bits of a word, all others arrays.
template <class T>
struct Source {
  const T* values;
  Source(Warp& warp, int place) : values(warp.lanes<T>(place)) {}
  T operator[](int lane) const { return values[lane]; }
};
template <>
struct Source<bool> {
  uint32_t bits;
  Source(Warp& warp, int place) : bits(warp.predicate(place)) {}
  bool operator[](int lane) const { return bits >> lane & 1; }
};

template <class T>
struct Result {
  alignas(64) T values[warp_size];
  void set(int lane, T value) { values[lane] = value; }
  void store(Warp& warp, int place, uint32_t lanes) const {
    T* target = warp.lanes<T>(place);
    if (lanes == all_lanes) {
      memcpy(target, values, sizeof values);
      return;
    }
    for (int lane = 0; lane < warp_size; ++lane)
      if (lanes >> lane & 1) target[lane] = values[lane];
  }
};
template <>
struct Result<bool> {
  uint32_t bits = 0;
  void set(int lane, bool value) { bits |= uint32_t{value} << lane; }
  void store(Warp& warp, int place, uint32_t lanes) const {
    uint32_t& target = warp.predicate(place);
    target = (target & ~lanes) | (bits & lanes);
  }
};

// result = function(sources), for a stateless function object.
template <class Function, class R, class... S>
struct Lanewise {
  static void execute(Warp& warp, const Instruction& instruction, uint32_t lanes) {
    run(warp, instruction, lanes, std::index_sequence_for<S...>());
  }
  template <size_t... i>
  static void run(Warp& warp, const Instruction& instruction, uint32_t lanes, std::index_sequence<i...>) {
    const std::tuple<Source<S>...> sources{Source<S>(warp, instruction.places[1 + i])...};
    Result<R> result;
    if (lanes == all_lanes) {
      for (int lane = 0; lane < warp_size; ++lane)
        result.set(lane, static_cast<R>(Function()(std::get<i>(sources)[lane]...)));
    } else {
      for (int lane = 0; lane < warp_size; ++lane)
        if (lanes >> lane & 1) result.set(lane, static_cast<R>(Function()(std::get<i>(sources)[lane]...)));
    }
    result.store(warp, instruction.places[0], lanes);
  }
  static Opcode opcode() { return {execute, Kind::plain, {NameOf<R>::value}, {NameOf<S>::value...}, false}; }
};

template <class... T>
struct Types {};

using Signed = Types<int16_t, int32_t, int64_t>;
using Unsigned = Types<uint16_t, uint32_t, uint64_t>;

// Calls body.operator()<T>() for each type.
template <class Body, class... T>
void for_types(Types<T...>, const Body& body) {
  (body.template operator()<T>(), ...);
}

// "f32" -> "b32": the type of the same size without a meaning
inline std::string bits_name(const std::string& type) {
  return "b" + std::to_string(bits_of(type));
}

}  // namespace emulation
