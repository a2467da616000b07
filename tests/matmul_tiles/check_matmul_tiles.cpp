// Products by tiles against sums in double precision, for random sizes, on operands of exactly the size that
// `multiply` may read. Prints what differs.
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#if !defined(VLEFF_EMULATED_TILES)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "kernels/cpu/matmul.h"

using namespace vleff::VLEFF_ISA;

namespace {

float upper(Word word) {
  const Word bits = word & 0xFFFF0000;
  float value;
  __builtin_memcpy(&value, &bits, sizeof(value));
  return value;
}
float lower(Word word) {
  return upper(word << 16);
}

std::mt19937 random_bits(1);

int64_t draw(int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(random_bits);
}

// Pairs of bfloat16 of either sign, 1/8 to 2.
std::vector<Word> draw_words(int64_t count) {
  std::vector<Word> words(count);
  for (Word& word : words) word = (static_cast<Word>(random_bits()) & 0x81FF81FF) | 0x3E003E00;
  return words;
}

bool check() {
  const int64_t rows = draw(1, 70), columns = draw(1, 150), depth = draw(1, draw(0, 3) ? 40 : 300);
  const int64_t first_depth = draw(0, 5), padding = draw(0, 5);
  const bool accumulate = draw(0, 1), transposed = draw(0, 1);
  const int64_t wide = round_up(columns, lanes);
  const LeftOperand shape =
      transposed ? LeftOperand{nullptr, 1, rows + padding} : LeftOperand{nullptr, depth + padding, 1};
  const auto left = draw_words((rows - 1) * shape.row_stride + (depth - 1) * shape.depth_stride + 1);
  const auto right = draw_words(panel_words(columns, first_depth + depth));
  const int64_t stride = wide + padding;
  std::vector<float> result((rows - 1) * stride + wide);
  for (float& value : result) value = static_cast<float>(draw(-9, 9));
  const std::vector<float> before = result;

  const int64_t done = multiply<BFloat16Product>(
      {left.data(), shape.row_stride, shape.depth_stride}, packed_panels(right.data(), first_depth + depth),
      {result.data(), stride}, rows, columns, depth, accumulate, first_depth);
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t column = 0; column < stride && row * stride + column < static_cast<int64_t>(result.size());
         ++column) {
      const int64_t place = row * stride + column;
      double sum = column >= wide || accumulate ? before[place] : 0.0, size = std::fabs(sum);
      for (int64_t k = 0; column < wide && k < depth; ++k) {
        const Word a = left[row * shape.row_stride + k * shape.depth_stride];
        const Word b = right[column / panel_width * panel_width * (first_depth + depth) +
                             (first_depth + k) * panel_width + column % panel_width];
        const double low = double(lower(a)) * lower(b), high = double(upper(a)) * upper(b);
        sum += low + high;
        size += std::fabs(low) + std::fabs(high);
      }
      if (!(std::fabs(result[place] - sum) <= 1e-6 * size)) {
        std::printf(
            "row %ld of %ld, column %ld of %ld, depth %ld from %ld, padding %ld, accumulate %d, transposed "
            "%d: "
            "%g, expected %g\n",
            long(row), long(rows), long(column), long(columns), long(depth), long(first_depth), long(padding),
            accumulate, transposed, result[place], sum);
        return false;
      }
    }
  return done == rows * wide * depth * 2;
}

}  // namespace

int main() {
#if !defined(VLEFF_EMULATED_TILES)
  syscall(SYS_arch_prctl, 0x1023, 18);  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
#endif
  for (int problem = 0; problem < 400; ++problem)
    if (!check()) return 1;
}
