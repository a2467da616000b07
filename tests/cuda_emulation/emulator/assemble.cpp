#include <map>
#include <stdexcept>
#include <utility>

#include "opcodes.h"

// Statements made ready to execute: names looked up once, operands given places in a warp's registers.
namespace emulation {
namespace {

constexpr int line_bytes = 64;

bool is_number(const std::string& text) {
  return !text.empty() && (std::isdigit(static_cast<unsigned char>(text[0])) || text[0] == '-');
}

// "42", "-1", "0x2A", "0f3F800000" (bits of a float32), "0d..." (of a float64)
uint64_t number_bits(const std::string& text) {
  if (text.rfind("0f", 0) == 0 || text.rfind("0d", 0) == 0) return std::stoull(text.substr(2), nullptr, 16);
  if (text[0] == '-') return static_cast<uint64_t>(std::stoll(text, nullptr, 0));
  return std::stoull(text, nullptr, 0);
}

std::vector<std::string> elements_of(const std::string& operand) {
  if (operand[0] == '{') return split_operands(operand.substr(1, operand.size() - 2));
  if (const size_t bar = operand.find('|'); bar != std::string::npos)
    return {operand.substr(0, bar), operand.substr(bar + 1)};
  return {operand};
}

class Assembler {
 public:
  explicit Assembler(KernelText text) { program_.text = std::move(text); }

  Program run() {
    std::vector<int> starts;  // of each statement among the instructions
    for (const Statement& statement : program_.text.statements) {
      starts.push_back(static_cast<int>(program_.instructions.size()));
      statement_ = &statement;
      add();
    }
    if (program_.instructions.empty() || may_fall_through(program_.instructions.back()))
      throw std::runtime_error("PTX: kernel " + program_.text.name + " ends with neither ret nor a jump");
    for (Instruction& instruction : program_.instructions)
      if (instruction.kind == Kind::branch) instruction.numbers[0] = starts[instruction.numbers[0]];
    return std::move(program_);
  }

 private:
  [[noreturn]] void reject(const std::string& reason) const {
    throw std::runtime_error("PTX line " + std::to_string(statement_->line) + ": " + reason + ": " +
                             statement_->text());
  }

  Instruction guarded(Kind kind, Execute execute) {
    Instruction instruction;
    instruction.kind = kind;
    instruction.execute = execute;
    instruction.statement = statement_;
    if (!statement_->guard.empty()) {
      instruction.guarded = true;
      instruction.guard_negated = statement_->guard_negated;
      instruction.guard = register_place(statement_->guard);
    }
    return instruction;
  }

  static bool may_fall_through(const Instruction& last) {
    return last.guarded || (last.kind != Kind::exit && last.kind != Kind::branch);
  }

  void add() {
    const std::string& name = statement_->opcode;
    if (name == "bra" || name == "bra.uni") {
      const auto label = program_.text.labels.find(statement_->operands.at(0));
      if (label == program_.text.labels.end()) reject("no such label");
      Instruction branch = guarded(Kind::branch, nullptr);
      branch.numbers[0] = label->second;
      program_.instructions.push_back(branch);
    } else if (name == "ret" || name == "exit") {
      program_.instructions.push_back(guarded(Kind::exit, nullptr));
    } else if (name == "bar.sync" || name == "barrier.sync") {
      if (statement_->operands != std::vector<std::string>{"0"})
        reject("only barrier 0 of all threads is known");
      program_.instructions.push_back(guarded(Kind::block_barrier, nullptr));
    } else {
      add_operation();
    }
  }

  void add_operation() {
    std::vector<std::string> operands;
    for (const std::string& operand : statement_->operands)
      for (const std::string& element : elements_of(operand)) operands.push_back(element);
    const Opcode& opcode = find_opcode(operands.size());
    if (operands.size() != opcode.results.size() + opcode.sources.size())
      reject("an unexpected number of operands");

    Instruction instruction = guarded(opcode.kind, opcode.execute);
    std::vector<Instruction> widenings;  // of results, behind the instruction
    int addresses = 0;
    for (size_t i = 0; i < operands.size(); ++i) {
      if (i < opcode.results.size())
        instruction.places[i] = result_place(operands[i], opcode.results[i], widenings);
      else if (operands[i][0] == '[')
        instruction.places[i] = address_place(operands[i], instruction.numbers[addresses++]);
      else
        instruction.places[i] = source_place(operands[i], opcode.sources[i - opcode.results.size()]);
    }
    if (opcode.has_mask) instruction.mask = instruction.places[operands.size() - 1];
    program_.instructions.push_back(instruction);
    program_.instructions.insert(program_.instructions.end(), widenings.begin(), widenings.end());
  }

  // Some opcodes differ by the form or number of their operands: "mov.b32/pack",
  // "cp.async.ca.shared.global/4".
  const Opcode& find_opcode(size_t operands) const {
    std::vector<std::string> names{statement_->opcode, statement_->opcode + "/" + std::to_string(operands)};
    if (statement_->opcode.rfind("mov.", 0) == 0 && operands > 2)
      names = {statement_->opcode + (statement_->operands[0][0] == '{' ? "/unpack" : "/pack")};
    for (const std::string& name : names)
      if (const auto found = all_opcodes().find(name); found != all_opcodes().end()) return found->second;
    reject("an opcode that is not known");
  }

  int result_place(const std::string& name, const std::string& type, std::vector<Instruction>& widenings) {
    const int bits = register_bits(name);
    if (bits == bits_of(type)) return register_place(name);
    if (bits < bits_of(type) || bits == 1) reject("a result that does not fit " + name);
    Instruction widening = guarded(Kind::plain, resize(type, bits));
    widening.places[0] = register_place(name);
    widening.places[1] = allocate(bits_of(type));
    widenings.push_back(widening);
    return widening.places[1];
  }

  int source_place(const std::string& operand, const std::string& type) {
    if (is_number(operand)) {
      const bool is_predicate = type == "pred";
      return constant_place(is_predicate ? number_bits(operand) != 0 : number_bits(operand), bits_of(type));
    }
    if (!program_.text.registers.count(operand)) {
      if (operand[0] == '%') return special_register_place(operand);
      return symbol_place(operand, bits_of(type));
    }
    const int bits = register_bits(operand);
    if (bits == bits_of(type)) return register_place(operand);
    if (bits < bits_of(type) || bits == 1) reject("an operand that is too narrow, " + operand);
    Instruction narrowing = guarded(Kind::plain, resize("u" + std::to_string(bits), bits_of(type)));
    narrowing.places[0] = allocate(bits_of(type));
    narrowing.places[1] = register_place(operand);
    program_.instructions.push_back(narrowing);
    return narrowing.places[0];
  }

  // "[%rd1+-8]", "[parameter+4]", "[variable]"
  int address_place(const std::string& operand, int64_t& offset) {
    std::string base = operand.substr(1, operand.size() - 2);
    if (const size_t plus = base.find('+'); plus != std::string::npos) {
      offset = std::stoll(base.substr(plus + 1), nullptr, 0);
      base.resize(plus);
    }
    if (program_.text.registers.count(base)) return register_place(base);
    return symbol_place(base, 64);
  }

  int symbol_place(const std::string& name, int bits) {
    if (const auto shared = program_.text.shared.find(name); shared != program_.text.shared.end())
      return constant_place(shared->second.offset, bits);
    const auto parameter = program_.text.parameters.find(name);
    if (parameter == program_.text.parameters.end() || bits != 64)
      reject("a name that is not known, " + name);
    auto [known, is_new] = parameter_places_.try_emplace(name, 0);
    if (is_new) {
      known->second = allocate(64);
      program_.parameter_addresses.push_back({known->second, parameter->second.offset});
    }
    return known->second;
  }

  int special_register_place(const std::string& name) {
    auto [known, is_new] = special_places_.try_emplace(name, 0);
    if (is_new) {
      known->second = allocate(32);
      program_.special_registers.push_back({known->second, name});
    }
    return known->second;
  }

  int constant_place(uint64_t value, int bits) {
    if (bits < 64) value &= (uint64_t{1} << bits) - 1;
    auto [known, is_new] = constant_places_.try_emplace({bits, value}, 0);
    if (is_new) {
      known->second = allocate(bits);
      program_.constants.push_back({known->second, bits, value});
    }
    return known->second;
  }

  int register_bits(const std::string& name) const {
    const auto found = program_.text.registers.find(name);
    if (found == program_.text.registers.end()) reject("a register that is not declared, " + name);
    return found->second;
  }

  int register_place(const std::string& name) {
    auto [known, is_new] = register_places_.try_emplace(name, 0);
    if (is_new) known->second = allocate(register_bits(name));
    return known->second;
  }

  // Room for a value of every lane; predicates take a word, sixteen of which share a line.
  int allocate(int bits) {
    if (bits == 1) {
      if (predicate_end_ % line_bytes == 0) {
        predicate_end_ = program_.register_bytes;
        program_.register_bytes += line_bytes;
      }
      return std::exchange(predicate_end_, predicate_end_ + static_cast<int>(sizeof(uint32_t)));
    }
    const int bytes = std::max(warp_size * bits / 8, line_bytes);
    return std::exchange(program_.register_bytes, program_.register_bytes + bytes);
  }

  Program program_;
  const Statement* statement_ = nullptr;
  int predicate_end_ = 0;
  std::map<std::string, int> register_places_, special_places_, parameter_places_;
  std::map<std::pair<int, uint64_t>, int> constant_places_;
};

}  // namespace

const Opcodes& all_opcodes() {
  static const Opcodes opcodes = [] {
    Opcodes result;
    add_arithmetic(result);
    add_conversions(result);
    add_memory_accesses(result);
    add_warp_collectives(result);
    return result;
  }();
  return opcodes;
}

Program assemble(KernelText text) {
  return Assembler(std::move(text)).run();
}

}  // namespace emulation
