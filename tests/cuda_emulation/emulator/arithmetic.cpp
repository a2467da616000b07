#include <algorithm>
#include <cmath>
#include <tuple>
#include <utility>

#include "lanewise.h"

// Arithmetic, logic, comparisons and selections.
namespace emulation {
namespace {

template <class T>
using Wrapping =
    std::conditional_t<std::is_integral_v<T>, std::make_unsigned<T>, std::type_identity<T>>::type;

// Integers wrap; in C++ only unsigned ones may. Types below int are widened by C++ first, without harm.
struct Add {
  template <class T>
  T operator()(T a, T b) const {
    return static_cast<T>(static_cast<Wrapping<T>>(a) + static_cast<Wrapping<T>>(b));
  }
};
struct Subtract {
  template <class T>
  T operator()(T a, T b) const {
    return static_cast<T>(static_cast<Wrapping<T>>(a) - static_cast<Wrapping<T>>(b));
  }
};
struct Multiply {
  template <class T>
  T operator()(T a, T b) const {
    if constexpr (std::is_integral_v<T>)
      return static_cast<T>(static_cast<uint64_t>(a) * static_cast<uint64_t>(b));
    else
      return a * b;
  }
};
struct MultiplyAdd {  // of integers
  template <class T>
  T operator()(T a, T b, T c) const {
    return Add()(Multiply()(a, b), c);
  }
};
struct FusedMultiplyAdd {
  template <class T>
  T operator()(T a, T b, T c) const {
    return std::fma(a, b, c);
  }
};
template <class Wide>
struct MultiplyWide {
  template <class T>
  Wide operator()(T a, T b) const {
    return static_cast<Wide>(a) * static_cast<Wide>(b);
  }
};
template <class Wide>
struct MultiplyAddWide {
  template <class T>
  Wide operator()(T a, T b, Wide c) const {
    return Add()(static_cast<Wide>(static_cast<Wide>(a) * static_cast<Wide>(b)), c);
  }
};
struct MultiplyHigh {
  template <class T>
  T operator()(T a, T b) const {
    using Wide = std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>;
    return static_cast<T>((static_cast<Wide>(a) * static_cast<Wide>(b)) >> (8 * sizeof(T)));
  }
};
struct Divide {  // PTX leaves the integer quotient by 0 open
  template <class T>
  T operator()(T a, T b) const {
    if constexpr (std::is_integral_v<T>) {
      if (b == 0) return static_cast<T>(-1);
      if (std::is_signed_v<T> && b == static_cast<T>(-1)) return Subtract()(T{0}, a);
    }
    return a / b;
  }
};
struct Remainder {
  template <class T>
  T operator()(T a, T b) const {
    if (b == 0) return a;
    return std::is_signed_v<T> && b == static_cast<T>(-1) ? T{0} : a % b;
  }
};
struct Minimum {
  template <class T>
  T operator()(T a, T b) const {
    if constexpr (std::is_integral_v<T>)
      return a < b ? a : b;
    else
      return std::isnan(a) ? b : std::isnan(b) ? a : a < b || (a == b && std::signbit(a)) ? a : b;
  }
};
struct Maximum {
  template <class T>
  T operator()(T a, T b) const {
    if constexpr (std::is_integral_v<T>)
      return a > b ? a : b;
    else
      return std::isnan(a) ? b : std::isnan(b) ? a : a > b || (a == b && std::signbit(b)) ? a : b;
  }
};
struct Negate {
  template <class T>
  T operator()(T a) const {
    if constexpr (std::is_integral_v<T>)
      return Subtract()(T{0}, a);
    else
      return -a;
  }
};
struct Absolute {
  template <class T>
  T operator()(T a) const {
    if constexpr (std::is_integral_v<T>)
      return a < 0 ? Subtract()(T{0}, a) : a;
    else
      return std::fabs(a);
  }
};
struct Reciprocal {
  template <class T>
  T operator()(T a) const {
    return 1 / a;
  }
};
struct SquareRoot {
  template <class T>
  T operator()(T a) const {
    return std::sqrt(a);
  }
};
struct And {
  template <class T>
  T operator()(T a, T b) const {
    return a & b;
  }
};
struct Or {
  template <class T>
  T operator()(T a, T b) const {
    return a | b;
  }
};
struct ExclusiveOr {
  template <class T>
  T operator()(T a, T b) const {
    return a ^ b;
  }
};
struct Not {
  template <class T>
  T operator()(T a) const {
    if constexpr (std::is_same_v<T, bool>)
      return !a;
    else
      return ~a;
  }
};
struct ShiftLeft {
  template <class T>
  T operator()(T a, uint32_t n) const {
    return n >= 8 * sizeof(T) ? T{0} : static_cast<T>(a << n);
  }
};
struct ShiftRight {
  template <class T>
  T operator()(T a, uint32_t n) const {
    constexpr uint32_t last = 8 * sizeof(T) - 1;
    if (n > last && std::is_unsigned_v<T>) return 0;
    return static_cast<T>(a >> std::min(n, last));
  }
};
struct Funnel {  // shf.l.wrap: the high word of (b, a) shifted left
  uint32_t operator()(uint32_t a, uint32_t b, uint32_t n) const {
    return n % 32 ? b << n % 32 | a >> (32 - n % 32) : b;
  }
};
struct FunnelRight {  // shf.r.wrap: the low word of (b, a) shifted right
  uint32_t operator()(uint32_t a, uint32_t b, uint32_t n) const {
    return n % 32 ? a >> n % 32 | b << (32 - n % 32) : a;
  }
};
struct Move {
  template <class T>
  T operator()(T a) const {
    return a;
  }
};
struct Select {
  template <class T>
  T operator()(T a, T b, bool which) const {
    return which ? a : b;
  }
};
struct CountOnes {
  template <class T>
  uint32_t operator()(T a) const {
    return __builtin_popcountll(a);
  }
};
struct CountLeadingZeros {
  uint32_t operator()(uint32_t a) const { return a ? __builtin_clz(a) : 32; }
};
struct ReverseBits {
  uint32_t operator()(uint32_t a) const {
    uint32_t result = 0;
    for (int bit = 0; bit < 32; ++bit) result |= (a >> bit & 1) << (31 - bit);
    return result;
  }
};
struct InsertBits {  // the lowest `count` bits of a into b at `first`
  template <class T>
  T operator()(T a, T b, uint32_t first, uint32_t count) const {
    constexpr uint32_t size = 8 * sizeof(T);
    first &= 255, count &= 255;
    if (first >= size || count == 0) return b;
    const T mask = (count >= size ? ~T{0} : (T{1} << count) - 1) << first;
    return (b & ~mask) | (a << first & mask);
  }
};
struct ExtractBits {
  uint32_t operator()(uint32_t a, uint32_t first, uint32_t count) const {
    first &= 255, count &= 255;
    return first > 31 || count == 0 ? 0 : a >> first & (count >= 32 ? ~0u : (1u << count) - 1);
  }
};
struct PermuteBytes {
  uint32_t operator()(uint32_t a, uint32_t b, uint32_t selectors) const {
    const uint64_t bytes = uint64_t{b} << 32 | a;
    uint32_t result = 0;
    for (int i = 0; i < 4; ++i) {
      const uint32_t selector = selectors >> 4 * i & 15;
      uint32_t byte = bytes >> 8 * (selector & 7) & 255;
      if (selector & 8) byte = byte & 128 ? 255 : 0;
      result |= byte << 8 * i;
    }
    return result;
  }
};

// Comparisons. With "u" behind its name, one of floats is true where an operand is NaN.
struct Equal {
  template <class T>
  bool operator()(T a, T b) const {
    return a == b;
  }
};
struct NotEqual {
  template <class T>
  bool operator()(T a, T b) const {
    return a < b || a > b;
  }
};
struct Less {
  template <class T>
  bool operator()(T a, T b) const {
    return a < b;
  }
};
struct LessEqual {
  template <class T>
  bool operator()(T a, T b) const {
    return a <= b;
  }
};
struct Greater {
  template <class T>
  bool operator()(T a, T b) const {
    return a > b;
  }
};
struct GreaterEqual {
  template <class T>
  bool operator()(T a, T b) const {
    return a >= b;
  }
};
template <class Comparison>
struct OrUnordered {
  template <class T>
  bool operator()(T a, T b) const {
    return std::isnan(a) || std::isnan(b) || Comparison()(a, b);
  }
};
struct Unordered {
  template <class T>
  bool operator()(T a, T b) const {
    return std::isnan(a) || std::isnan(b);
  }
};
struct Ordered {
  template <class T>
  bool operator()(T a, T b) const {
    return !Unordered()(a, b);
  }
};
template <class Comparison, class Combination>
struct Combined {
  template <class T>
  bool operator()(T a, T b, bool other) const {
    return Combination()(Comparison()(a, b), other);
  }
};

// Counts float operations beside executing.
template <class Base, int operations>
struct Counted {
  static void execute(Warp& warp, const Instruction& instruction, uint32_t lanes) {
    warp.block.statistics.float_operations += operations * __builtin_popcount(lanes);
    Base::execute(warp, instruction, lanes);
  }
  static Opcode opcode() {
    Opcode opcode = Base::opcode();
    opcode.execute = execute;
    return opcode;
  }
};

template <class Comparison, class T>
void add_comparison(Opcodes& opcodes, const std::string& name) {
  const std::string type = NameOf<T>::value;
  opcodes["setp." + name + "." + type] = Lanewise<Comparison, bool, T, T>::opcode();
  opcodes["setp." + name + ".and." + type] = Lanewise<Combined<Comparison, And>, bool, T, T, bool>::opcode();
  opcodes["setp." + name + ".or." + type] = Lanewise<Combined<Comparison, Or>, bool, T, T, bool>::opcode();
}

template <class T>
void add_integer_comparisons(Opcodes& opcodes, const std::string& low, const std::string& high) {
  add_comparison<Equal, T>(opcodes, "eq");
  add_comparison<NotEqual, T>(opcodes, "ne");
  add_comparison<Less, T>(opcodes, low + "t");
  add_comparison<LessEqual, T>(opcodes, low + "e");
  add_comparison<Greater, T>(opcodes, high + "t");
  add_comparison<GreaterEqual, T>(opcodes, high + "e");
}

template <class T>
void add_float_comparisons(Opcodes& opcodes) {
  add_integer_comparisons<T>(opcodes, "l", "g");
  add_comparison<OrUnordered<Equal>, T>(opcodes, "equ");
  add_comparison<OrUnordered<NotEqual>, T>(opcodes, "neu");
  add_comparison<OrUnordered<Less>, T>(opcodes, "ltu");
  add_comparison<OrUnordered<LessEqual>, T>(opcodes, "leu");
  add_comparison<OrUnordered<Greater>, T>(opcodes, "gtu");
  add_comparison<OrUnordered<GreaterEqual>, T>(opcodes, "geu");
  add_comparison<Unordered, T>(opcodes, "nan");
  add_comparison<Ordered, T>(opcodes, "num");
}

template <class T>
void add_integers(Opcodes& opcodes) {
  const std::string type = NameOf<T>::value;
  opcodes["add." + type] = Lanewise<Add, T, T, T>::opcode();
  opcodes["sub." + type] = Lanewise<Subtract, T, T, T>::opcode();
  opcodes["mul.lo." + type] = Lanewise<Multiply, T, T, T>::opcode();
  opcodes["mul.hi." + type] = Lanewise<MultiplyHigh, T, T, T>::opcode();
  opcodes["mad.lo." + type] = Lanewise<MultiplyAdd, T, T, T, T>::opcode();
  opcodes["div." + type] = Lanewise<Divide, T, T, T>::opcode();
  opcodes["rem." + type] = Lanewise<Remainder, T, T, T>::opcode();
  opcodes["min." + type] = Lanewise<Minimum, T, T, T>::opcode();
  opcodes["max." + type] = Lanewise<Maximum, T, T, T>::opcode();
  opcodes["shr." + type] = Lanewise<ShiftRight, T, T, uint32_t>::opcode();
  opcodes["mov." + type] = Lanewise<Move, T, T>::opcode();
  opcodes["selp." + type] = Lanewise<Select, T, T, T, bool>::opcode();
  add_integer_comparisons<T>(opcodes, "l", "g");
}

template <class T>
void add_bits(Opcodes& opcodes) {
  const std::string type = bits_name(NameOf<T>::value);
  opcodes["and." + type] = Lanewise<And, T, T, T>::opcode();
  opcodes["or." + type] = Lanewise<Or, T, T, T>::opcode();
  opcodes["xor." + type] = Lanewise<ExclusiveOr, T, T, T>::opcode();
  opcodes["not." + type] = Lanewise<Not, T, T>::opcode();
  opcodes["shl." + type] = Lanewise<ShiftLeft, T, T, uint32_t>::opcode();
  opcodes["shr." + type] = Lanewise<ShiftRight, T, T, uint32_t>::opcode();
  opcodes["mov." + type] = Lanewise<Move, T, T>::opcode();
  opcodes["selp." + type] = Lanewise<Select, T, T, T, bool>::opcode();
  opcodes["setp.eq." + type] = Lanewise<Equal, bool, T, T>::opcode();
  opcodes["setp.ne." + type] = Lanewise<NotEqual, bool, T, T>::opcode();
}

// Opcodes of float32 and float64 rounded to nearest, where `rounding` is ".rn" or empty.
template <class T>
void add_floats(Opcodes& opcodes) {
  const std::string type = NameOf<T>::value;
  for (const std::string rounding : {"", ".rn"}) {
    opcodes["add" + rounding + "." + type] = Counted<Lanewise<Add, T, T, T>, 1>::opcode();
    opcodes["sub" + rounding + "." + type] = Counted<Lanewise<Subtract, T, T, T>, 1>::opcode();
    opcodes["mul" + rounding + "." + type] = Counted<Lanewise<Multiply, T, T, T>, 1>::opcode();
  }
  opcodes["fma.rn." + type] = Counted<Lanewise<FusedMultiplyAdd, T, T, T, T>, 2>::opcode();
  opcodes["div.rn." + type] = Counted<Lanewise<Divide, T, T, T>, 1>::opcode();
  opcodes["rcp.rn." + type] = Counted<Lanewise<Reciprocal, T, T>, 1>::opcode();
  opcodes["sqrt.rn." + type] = Counted<Lanewise<SquareRoot, T, T>, 1>::opcode();
  opcodes["min." + type] = Counted<Lanewise<Minimum, T, T, T>, 1>::opcode();
  opcodes["max." + type] = Counted<Lanewise<Maximum, T, T, T>, 1>::opcode();
  opcodes["neg." + type] = Counted<Lanewise<Negate, T, T>, 1>::opcode();
  opcodes["abs." + type] = Counted<Lanewise<Absolute, T, T>, 1>::opcode();
  opcodes["mov." + type] = Lanewise<Move, T, T>::opcode();
  opcodes["selp." + type] = Lanewise<Select, T, T, T, bool>::opcode();
  add_float_comparisons<T>(opcodes);
}

}  // namespace

void add_arithmetic(Opcodes& opcodes) {
  for_types(Signed(), [&]<class T>() {
    add_integers<T>(opcodes);
    opcodes[std::string("neg.") + NameOf<T>::value] = Lanewise<Negate, T, T>::opcode();
    opcodes[std::string("abs.") + NameOf<T>::value] = Lanewise<Absolute, T, T>::opcode();
  });
  for_types(Unsigned(), [&]<class T>() {
    add_integers<T>(opcodes);
    add_bits<T>(opcodes);
  });
  for_types(Types<float, double>(), [&]<class T>() { add_floats<T>(opcodes); });

  opcodes["mul.wide.s16"] = Lanewise<MultiplyWide<int32_t>, int32_t, int16_t, int16_t>::opcode();
  opcodes["mul.wide.u16"] = Lanewise<MultiplyWide<uint32_t>, uint32_t, uint16_t, uint16_t>::opcode();
  opcodes["mul.wide.s32"] = Lanewise<MultiplyWide<int64_t>, int64_t, int32_t, int32_t>::opcode();
  opcodes["mul.wide.u32"] = Lanewise<MultiplyWide<uint64_t>, uint64_t, uint32_t, uint32_t>::opcode();
  opcodes["mad.wide.s16"] = Lanewise<MultiplyAddWide<int32_t>, int32_t, int16_t, int16_t, int32_t>::opcode();
  opcodes["mad.wide.u16"] =
      Lanewise<MultiplyAddWide<uint32_t>, uint32_t, uint16_t, uint16_t, uint32_t>::opcode();
  opcodes["mad.wide.s32"] = Lanewise<MultiplyAddWide<int64_t>, int64_t, int32_t, int32_t, int64_t>::opcode();
  opcodes["mad.wide.u32"] =
      Lanewise<MultiplyAddWide<uint64_t>, uint64_t, uint32_t, uint32_t, uint64_t>::opcode();
  opcodes["shf.l.wrap.b32"] = Lanewise<Funnel, uint32_t, uint32_t, uint32_t, uint32_t>::opcode();
  opcodes["shf.r.wrap.b32"] = Lanewise<FunnelRight, uint32_t, uint32_t, uint32_t, uint32_t>::opcode();
  opcodes["popc.b32"] = Lanewise<CountOnes, uint32_t, uint32_t>::opcode();
  opcodes["popc.b64"] = Lanewise<CountOnes, uint32_t, uint64_t>::opcode();
  opcodes["clz.b32"] = Lanewise<CountLeadingZeros, uint32_t, uint32_t>::opcode();
  opcodes["brev.b32"] = Lanewise<ReverseBits, uint32_t, uint32_t>::opcode();
  opcodes["bfi.b32"] = Lanewise<InsertBits, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t>::opcode();
  opcodes["bfi.b64"] = Lanewise<InsertBits, uint64_t, uint64_t, uint64_t, uint32_t, uint32_t>::opcode();
  opcodes["bfe.u32"] = Lanewise<ExtractBits, uint32_t, uint32_t, uint32_t, uint32_t>::opcode();
  opcodes["prmt.b32"] = Lanewise<PermuteBytes, uint32_t, uint32_t, uint32_t, uint32_t>::opcode();
  opcodes["and.pred"] = Lanewise<And, bool, bool, bool>::opcode();
  opcodes["or.pred"] = Lanewise<Or, bool, bool, bool>::opcode();
  opcodes["xor.pred"] = Lanewise<ExclusiveOr, bool, bool, bool>::opcode();
  opcodes["not.pred"] = Lanewise<Not, bool, bool>::opcode();
  opcodes["mov.pred"] = Lanewise<Move, bool, bool>::opcode();
}

}  // namespace emulation
