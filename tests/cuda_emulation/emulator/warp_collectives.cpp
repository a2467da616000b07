#include <cmath>
#include <cstring>

#include "number_formats.h"
#include "opcodes.h"

// Instructions that the lanes of a warp execute together: shuffles, votes, matrix loads and products.
namespace emulation {
namespace {

enum class Shuffle { up, down, butterfly, index };

// Sources: value, lane or distance, bounds of segments, mask.
template <Shuffle shuffle, bool has_predicate>
void shuffle_lanes(Warp& warp, const Instruction& instruction, uint32_t lanes) {
  const int* sources = instruction.places + (has_predicate ? 2 : 1);
  const uint32_t *values = warp.lanes<uint32_t>(sources[0]), *numbers = warp.lanes<uint32_t>(sources[1]),
                 *bounds = warp.lanes<uint32_t>(sources[2]);
  uint32_t results[warp_size] = {}, in_range = 0;
  for (int lane = 0; lane < warp_size; ++lane) {
    if (!(lanes >> lane & 1)) continue;
    const int number = numbers[lane] & 31, segment = bounds[lane] >> 8 & 31, clamp = bounds[lane] & 31;
    const int first = lane & segment, last = first | (clamp & ~segment);
    int source = shuffle == Shuffle::up          ? lane - number
                 : shuffle == Shuffle::down      ? lane + number
                 : shuffle == Shuffle::butterfly ? lane ^ number
                                                 : first | (number & ~segment);
    const bool inside = shuffle == Shuffle::up ? source >= last : source <= last;
    if (!inside) source = lane;
    if (!(lanes >> source & 1)) fail("shuffle from a lane that does not take part");
    results[lane] = values[source];
    in_range |= uint32_t{inside} << lane;
  }
  uint32_t* target = warp.lanes<uint32_t>(instruction.places[0]);
  for (int lane = 0; lane < warp_size; ++lane)
    if (lanes >> lane & 1) target[lane] = results[lane];
  if (has_predicate) {
    uint32_t& predicate = warp.predicate(instruction.places[1]);
    predicate = (predicate & ~lanes) | in_range;
  }
}

template <Shuffle shuffle>
void add_shuffle(Opcodes& opcodes, const std::string& name) {
  const std::string full = "shfl.sync." + name + ".b32";
  const std::vector<std::string> sources{"b32", "u32", "u32", "u32"};
  opcodes[full + "/5"] = {shuffle_lanes<shuffle, false>, Kind::warp_collective, {"b32"}, sources, true};
  opcodes[full + "/6"] = {
      shuffle_lanes<shuffle, true>, Kind::warp_collective, {"b32", "pred"}, sources, true};
}

void ballot(Warp& warp, const Instruction& instruction, uint32_t lanes) {
  const uint32_t votes = warp.predicate(instruction.places[1]) & lanes;
  for (int lane = 0; lane < warp_size; ++lane)
    if (lanes >> lane & 1) warp.lanes<uint32_t>(instruction.places[0])[lane] = votes;
}

template <bool all>
void vote(Warp& warp, const Instruction& instruction, uint32_t lanes) {
  const uint32_t votes = warp.predicate(instruction.places[1]) & lanes;
  uint32_t& result = warp.predicate(instruction.places[0]);
  result = all ? votes == lanes : votes != 0 ? result | lanes : result & ~lanes;
}

void synchronize_warp(Warp& warp, const Instruction&, uint32_t lanes) {
  if (lanes != (warp.existing & ~warp.exited)) fail("a barrier of a part of a warp, which is not known here");
  warp.passed_barrier_of_warp();
}

// Lane 8m + i names row i of matrix m, eight 16-bit elements.
template <int count, bool transposed>
void load_matrices(Warp& warp, const Instruction& instruction, uint32_t) {
  uint16_t matrices[count][8][8];
  uint32_t addresses[warp_size] = {};
  for (int lane = 0; lane < 8 * count; ++lane) {
    addresses[lane] =
        warp.lanes<uint32_t>(instruction.places[count])[lane] + static_cast<uint32_t>(instruction.numbers[0]);
    memcpy(matrices[lane / 8][lane % 8], warp.block.shared.read(addresses[lane], 16, warp.actor(lane)), 16);
  }
  const SharedMemory::Passes passes =
      SharedMemory::passes(addresses, count == 4 ? all_lanes : (1u << 8 * count) - 1, 16);
  warp.block.statistics.matrix_load_passes += passes.needed;
  warp.block.statistics.matrix_load_passes_ideal += passes.ideal;
  for (int m = 0; m < count; ++m) {
    uint32_t* result = warp.lanes<uint32_t>(instruction.places[m]);
    for (int lane = 0; lane < warp_size; ++lane) {
      const int group = lane / 4, pair = 2 * (lane % 4);
      const uint16_t low = transposed ? matrices[m][pair][group] : matrices[m][group][pair];
      const uint16_t high = transposed ? matrices[m][pair + 1][group] : matrices[m][group][pair + 1];
      result[lane] = uint32_t{high} << 16 | low;
    }
  }
}

template <int count>
void add_matrix_load(Opcodes& opcodes) {
  const std::string name = "ldmatrix.sync.aligned.m8n8.x" + std::to_string(count);
  const std::vector<std::string> results(count, "b32");
  opcodes[name + ".shared.b16"] = {
      load_matrices<count, false>, Kind::warp_collective, results, {"u32"}, false};
  opcodes[name + ".trans.shared.b16"] = {
      load_matrices<count, true>, Kind::warp_collective, results, {"u32"}, false};
}

// Tensor cores do not round to nearest: what is cut off is what a careless kernel would lose.
float rounded_towards_zero(double value) {
  const float nearest = static_cast<float>(value);
  if (std::fabs(static_cast<double>(nearest)) > std::fabs(value) && std::isfinite(value))
    return float_value(float_bits(nearest) - 1);
  return nearest;
}

// [16, depth] times [depth, 8], where a 32-bit word holds `elements` numbers. Fragment layouts, for lane
// 4 * group + thread: of the left operand words (group, thread), (group + 8, thread), (group, thread + 4) and
// (group + 8, thread + 4); of the right one (thread, group) and (thread + 4, group); of the sum two
// neighbours from column 2 * thread in rows group and group + 8.
template <float (*number)(uint32_t), int elements>
void multiply_matrices(Warp& warp, const Instruction& instruction, uint32_t) {
  constexpr int depth = 8 * elements, element_bits = 32 / elements;
  const int *sums = instruction.places, *left = sums + 4, *right = left + 4, *addends = right + 2;
  double left_matrix[16][depth], right_matrix[depth][8], sum[16][8];
  for (int lane = 0; lane < warp_size; ++lane) {
    const int group = lane / 4, thread = lane % 4;
    for (int word = 0; word < 4; ++word) {
      const uint32_t bits = warp.lanes<uint32_t>(left[word])[lane];
      for (int e = 0; e < elements; ++e)
        left_matrix[group + word % 2 * 8][(thread + word / 2 * 4) * elements + e] =
            number(bits >> e * element_bits % 32);
      sum[group + word / 2 * 8][2 * thread + word % 2] = warp.lanes<float>(addends[word])[lane];
    }
    for (int word = 0; word < 2; ++word) {
      const uint32_t bits = warp.lanes<uint32_t>(right[word])[lane];
      for (int e = 0; e < elements; ++e)
        right_matrix[(thread + word * 4) * elements + e][group] = number(bits >> e * element_bits % 32);
    }
  }
  for (int row = 0; row < 16; ++row)
    for (int k = 0; k < depth; ++k)
      for (int column = 0; column < 8; ++column)
        sum[row][column] += left_matrix[row][k] * right_matrix[k][column];
  for (int lane = 0; lane < warp_size; ++lane) {
    const int group = lane / 4, thread = lane % 4;
    for (int word = 0; word < 4; ++word)
      warp.lanes<float>(sums[word])[lane] =
          rounded_towards_zero(sum[group + word / 2 * 8][2 * thread + word % 2]);
  }
  warp.block.statistics.tensor_core_operations += 2 * 16 * 8 * depth;
}

float low_bfloat16(uint32_t bits) {
  return bfloat16_value(bits & 0xFFFF);
}
float low_float16(uint32_t bits) {
  return float16_value(bits & 0xFFFF);
}

}  // namespace

void add_warp_collectives(Opcodes& opcodes) {
  add_shuffle<Shuffle::up>(opcodes, "up");
  add_shuffle<Shuffle::down>(opcodes, "down");
  add_shuffle<Shuffle::butterfly>(opcodes, "bfly");
  add_shuffle<Shuffle::index>(opcodes, "idx");
  opcodes["vote.sync.ballot.b32"] = {ballot, Kind::warp_collective, {"b32"}, {"pred", "u32"}, true};
  opcodes["vote.sync.any.pred"] = {vote<false>, Kind::warp_collective, {"pred"}, {"pred", "u32"}, true};
  opcodes["vote.sync.all.pred"] = {vote<true>, Kind::warp_collective, {"pred"}, {"pred", "u32"}, true};
  opcodes["bar.warp.sync"] = {synchronize_warp, Kind::warp_collective, {}, {"u32"}, true};
  add_matrix_load<1>(opcodes);
  add_matrix_load<2>(opcodes);
  add_matrix_load<4>(opcodes);

  const std::vector<std::string> sums(4, "f32");
  const std::vector<std::string> operands{"b32", "b32", "b32", "b32", "b32",
                                          "b32", "f32", "f32", "f32", "f32"};
  const auto add_product = [&](const std::string& name, Execute execute) {
    opcodes["mma.sync.aligned." + name] = {execute, Kind::warp_collective, sums, operands, false};
  };
  add_product("m16n8k16.row.col.f32.bf16.bf16.f32", multiply_matrices<low_bfloat16, 2>);
  add_product("m16n8k16.row.col.f32.f16.f16.f32", multiply_matrices<low_float16, 2>);
  add_product("m16n8k8.row.col.f32.tf32.tf32.f32", multiply_matrices<tensor_float32_value, 1>);
}

}  // namespace emulation
