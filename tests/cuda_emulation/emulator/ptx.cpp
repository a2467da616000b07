#include "ptx.h"

#include <algorithm>
#include <regex>
#include <stdexcept>

namespace emulation {
namespace {

std::string trimmed(const std::string& text) {
  const size_t begin = text.find_first_not_of(" \t\n\r");
  if (begin == std::string::npos) return "";
  return text.substr(begin, text.find_last_not_of(" \t\n\r") + 1 - begin);
}

bool is_name_character(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '$' || c == '%';
}

// Comments and debugging directives become blanks, so that lines keep their numbers.
std::string without_comments(std::string text) {
  for (size_t i = 0; i + 1 < text.size(); ++i) {
    if (text[i] == '/' && text[i + 1] == '/') {
      for (; i < text.size() && text[i] != '\n'; ++i) text[i] = ' ';
    } else if (text[i] == '/' && text[i + 1] == '*') {
      for (; text.compare(i, 2, "*/") != 0; ++i) {
        if (text[i] != '\n') text[i] = ' ';
      }
      text[i] = text[i + 1] = ' ';
    }
  }
  return text;
}

int round_up(int value, int step) {
  return (value + step - 1) / step * step;
}

// ".shared .align 16 .b8 name[64]" -> its parts
struct Declaration {
  int align, bytes;
  std::string name;
};

Declaration parse_declaration(const std::string& text) {
  static const std::regex type_pattern(R"(\.(pred|[bsuf]\d+)\b)"), align_pattern(R"(\.align\s+(\d+))"),
      name_pattern(R"(([\w$%]+)\s*(?:\[(\d*)\])?\s*$)");
  std::smatch type, align, name;
  if (!std::regex_search(text, type, type_pattern) || !std::regex_search(text, name, name_pattern))
    throw std::runtime_error("PTX: a declaration of an unknown form: " + text);
  const int element = bits_of(type[1]) / 8;
  const bool is_pointer_hint = text.find(".ptr") != std::string::npos;  // .align is that of the pointee
  const bool aligned = !is_pointer_hint && std::regex_search(text, align, align_pattern);
  const bool is_array = name[2].matched;
  const int count = !is_array ? 1 : name[2].length() ? std::stoi(name[2]) : 0;
  return {aligned ? std::stoi(align[1]) : element, count * element, name[1]};
}

// What stands before ".entry" on its line belongs to the kernel.
std::string without_linkage(const std::string& text) {
  return text.substr(0, text.find_last_of('\n') + 1);
}

class Parser {
 public:
  KernelText run(const std::string& declarations, const std::string& kernel, int first_line) {
    read(declarations, 1);
    read(kernel, first_line);
    return std::move(kernel_);
  }

 private:
  void read(const std::string& text, int line) {
    std::string pending;
    int start = line;
    for (const char c : text) {
      if (pending.empty() && std::isspace(static_cast<unsigned char>(c))) {
        line += c == '\n';
        continue;
      }
      if (pending.empty()) start = line;
      if (c == '\n') {
        ++line;
        pending += ' ';
        if (is_line_directive(pending)) pending.clear();
      } else if (c == ';') {
        statement(trimmed(pending), start);
        pending.clear();
      } else if (c == ':' && is_name(pending)) {
        kernel_.labels[pending] = static_cast<int>(kernel_.statements.size());
        pending.clear();
      } else if (c == '{' && (depth_ == 0 || pending.empty())) {
        open_scope(pending);
        pending.clear();
      } else if (c == '}' && pending.empty()) {
        close_scope();
      } else {
        pending += c == '\t' ? ' ' : c;
      }
    }
  }

  // Directives that end with their line, not with a semicolon
  static bool is_line_directive(const std::string& text) {
    for (const char* name : {".version", ".target", ".address_size", ".loc", ".file"})
      if (text.rfind(name, 0) == 0) return true;
    return false;
  }
  static bool is_name(const std::string& text) {
    return !text.empty() && std::all_of(text.begin(), text.end(), is_name_character);
  }

  void open_scope(const std::string& head) {
    if (depth_++ > 0) {
      scopes_.emplace_back();
      return;
    }
    static const std::regex pattern(R"(\.entry\s+([\w$]+)\s*\(([^)]*)\))"), threads(R"(\.maxntid\s+(\d+))");
    std::smatch match;
    if (!std::regex_search(head, match, pattern))
      throw std::runtime_error("PTX: only kernels are known, not: " + head.substr(0, 120));
    kernel_.name = match[1];
    for (const std::string& text : split_operands(match[2])) {
      const Declaration parameter = parse_declaration(text);
      const int offset = round_up(kernel_.parameter_bytes, parameter.align);
      kernel_.parameter_names.push_back(parameter.name);
      kernel_.parameters[parameter.name] = {offset, parameter.bytes};
      kernel_.parameter_bytes = offset + parameter.bytes;
    }
    if (std::regex_search(head, match, threads)) kernel_.most_threads = std::stoi(match[1]);
  }

  void close_scope() {
    if (--depth_ > 0)
      scopes_.pop_back();
    else
      place_shared_variables();
  }

  // Static variables that the kernel mentions come first, the one array of dynamic size behind them.
  void place_shared_variables() {
    for (const bool dynamic : {false, true}) {
      for (const Declaration& variable : shared_) {
        if ((variable.bytes == 0) != dynamic || !is_mentioned(variable.name)) continue;
        const int offset = round_up(kernel_.static_shared_bytes, variable.align);
        kernel_.shared[variable.name] = {offset, variable.bytes};
        kernel_.static_shared_bytes = offset + variable.bytes;
      }
    }
  }
  bool is_mentioned(const std::string& name) const {
    for (const Statement& statement : kernel_.statements)
      for (const std::string& operand : statement.operands)
        if (operand.find(name) != std::string::npos) return true;
    return false;
  }

  void statement(const std::string& text, int line) {
    if (text.empty()) return;
    if (text[0] == '.') {
      declaration(text);
      return;
    }
    if (depth_ == 0) throw std::runtime_error("PTX: a statement outside of a kernel: " + text);
    Statement result{line, "", false, "", {}};
    size_t begin = 0;
    if (text[0] == '@') {
      result.guard_negated = text[1] == '!';
      begin = text.find(' ');
      result.guard =
          scoped(text.substr(result.guard_negated ? 2 : 1, begin - (result.guard_negated ? 2 : 1)));
      begin = text.find_first_not_of(" \t", begin);
    }
    const size_t end = std::min(text.find_first_of(" \t", begin), text.size());
    result.opcode = text.substr(begin, end - begin);
    for (const std::string& operand : split_operands(text.substr(end)))
      result.operands.push_back(scoped(operand));
    kernel_.statements.push_back(std::move(result));
  }

  void declaration(const std::string& text) {
    if (text.rfind(".reg", 0) == 0) {
      registers(text);
    } else if (text.find(".shared") != std::string::npos) {
      shared_.push_back(parse_declaration(text));
    } else if (text.rfind(".pragma", 0) != 0) {
      throw std::runtime_error("PTX: a declaration that is not known: " + text);
    }
  }

  // ".reg .b32 %r<5>" declares %r0 to %r4, ".reg .b16 low, high" two registers.
  void registers(const std::string& text) {
    static const std::regex pattern(R"(\.reg\s+\.(\w+)\s+([^]*))"), range(R"(([\w%]+)<(\d+)>)");
    std::smatch match, numbers;
    if (!std::regex_match(text, match, pattern)) throw std::runtime_error("PTX: not registers: " + text);
    const int bits = std::max(bits_of(match[1]), match[1] == "pred" ? 1 : 16);
    for (const std::string& name : split_operands(match[2])) {
      if (std::regex_match(name, numbers, range)) {
        for (int i = 0; i < std::stoi(numbers[2]); ++i)
          kernel_.registers[numbers[1].str() + std::to_string(i)] = bits;
      } else {
        std::string unique = name;
        if (!scopes_.empty()) unique = scopes_.back()[name] = name + "@" + std::to_string(++scoped_names_);
        kernel_.registers[unique] = bits;
      }
    }
  }

  // Names declared in an inner scope get a name of their own.
  std::string scoped(const std::string& text) const {
    if (scopes_.empty()) return text;
    std::string result;
    for (size_t i = 0; i < text.size();) {
      size_t end = i;
      while (end < text.size() && is_name_character(text[end])) ++end;
      if (end == i) {
        result += text[i++];
        continue;
      }
      std::string name = text.substr(i, end - i);
      for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope) {
        if (const auto found = scope->find(name); found != scope->end()) {
          name = found->second;
          break;
        }
      }
      result += name;
      i = end;
    }
    return result;
  }

  int depth_ = 0, scoped_names_ = 0;
  std::vector<std::unordered_map<std::string, std::string>> scopes_;  // inner ones
  std::vector<Declaration> shared_;
  KernelText kernel_;
};

}  // namespace

std::string Statement::text() const {
  std::string result = guard.empty() ? "" : (guard_negated ? "@!" : "@") + guard + " ";
  result += opcode;
  for (size_t i = 0; i < operands.size(); ++i) result += (i ? ", " : " ") + operands[i];
  return result;
}

std::vector<std::string> split_operands(const std::string& text) {
  std::vector<std::string> result;
  std::string operand;
  int depth = 0;
  for (const char c : text) {
    depth += (c == '{' || c == '[') - (c == '}' || c == ']');
    if (c == ',' && depth == 0) {
      result.push_back(trimmed(operand));
      operand.clear();
    } else {
      operand += c;
    }
  }
  if (!trimmed(operand).empty()) result.push_back(trimmed(operand));
  return result;
}

int bits_of(const std::string& type) {
  return type == "pred" ? 1 : std::stoi(type.substr(type.find_first_of("0123456789")));
}

ModuleText::ModuleText(const std::string& source) {
  const std::string text = without_comments(source);
  size_t done = 0;
  int line = 1;
  for (size_t entry = text.find(".entry"); entry != std::string::npos; entry = text.find(".entry", done)) {
    const size_t name = text.find_first_not_of(" \t", entry + 6), name_end = text.find_first_of(" \t(", name);
    const size_t end = text.find("\n}", entry) + 2;
    declarations_ += without_linkage(text.substr(done, entry - done));
    line += static_cast<int>(std::count(text.begin() + done, text.begin() + entry, '\n'));
    kernels_[text.substr(name, name_end - name)] = {text.substr(entry, end - entry), line};
    line += static_cast<int>(std::count(text.begin() + entry, text.begin() + end, '\n'));
    done = end;
  }
}

std::vector<std::string> ModuleText::kernel_names() const {
  std::vector<std::string> names;
  for (const auto& [name, part] : kernels_) names.push_back(name);
  return names;
}

KernelText ModuleText::kernel(const std::string& name) const {
  const Part& part = kernels_.at(name);
  return Parser().run(declarations_, part.text, part.line);
}

}  // namespace emulation
