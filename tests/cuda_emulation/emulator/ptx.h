#pragma once
#include <string>
#include <unordered_map>
#include <vector>

// PTX, the assembly language that nvcc makes of CUDA C++, taken apart into statements.
namespace emulation {

// "@!%p1 add.s32 %r3, %r1, 4;"
struct Statement {
  int line;           // in the text
  std::string guard;  // name of the predicate on which it is executed, or empty
  bool guard_negated;
  std::string opcode;
  std::vector<std::string> operands;

  std::string text() const;
};

// A variable in parameter or shared memory.
struct Variable {
  int offset, bytes;
};

struct KernelText {
  std::string name;
  std::vector<std::string> parameter_names;
  std::unordered_map<std::string, Variable> parameters;
  int parameter_bytes = 0;
  int most_threads = 1024;                         // of a block, by __launch_bounds__
  std::unordered_map<std::string, int> registers;  // their bits: 1 for predicates, 16, 32 or 64
  std::unordered_map<std::string, Variable> shared;
  int static_shared_bytes = 0;
  std::vector<Statement> statements;
  std::unordered_map<std::string, int> labels;  // number of the statement behind each
};

// A PTX file as nvcc writes it. Kernels are taken apart when they are asked for, as only few of many run.
class ModuleText {
 public:
  explicit ModuleText(const std::string& text);

  std::vector<std::string> kernel_names() const;

  // Throws std::runtime_error where it meets something that it does not know.
  KernelText kernel(const std::string& name) const;

 private:
  struct Part {
    std::string text;
    int line;
  };
  std::unordered_map<std::string, Part> kernels_;
  std::string declarations_;  // outside of kernels
};

// "a, {b, c}, [d+4]" -> "a", "{b, c}", "[d+4]"
std::vector<std::string> split_operands(const std::string& text);

// Bits of a PTX type such as "f32"; 1 for "pred".
int bits_of(const std::string& type);

}  // namespace emulation
