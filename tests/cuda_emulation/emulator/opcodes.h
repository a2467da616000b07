#pragma once
#include <string>
#include <unordered_map>
#include <vector>

#include "machine.h"

// What each opcode does. An opcode is written as in PTX, modifiers and types included: "setp.lt.and.f32".
namespace emulation {

struct Opcode {
  Execute execute;
  Kind kind = Kind::plain;
  // PTX types of the operands, those of vectors one by one: "b32", "pred".
  std::vector<std::string> results, sources;
  bool has_mask = false;  // the last source names the lanes of a collective
};

using Opcodes = std::unordered_map<std::string, Opcode>;

// Each adds its own.
void add_arithmetic(Opcodes& opcodes);
void add_conversions(Opcodes& opcodes);
void add_memory_accesses(Opcodes& opcodes);
void add_warp_collectives(Opcodes& opcodes);

const Opcodes& all_opcodes();

// Widens or narrows lanes between registers and types of different size, from operand 1 to operand 0.
Execute resize(const std::string& from_type, int to_bits);

}  // namespace emulation
