#pragma once
#include "attention_distillation_problem.h"
#include "attention_task.cuh"

// What forward and backward of attention_distillation share: the logits of both sides, tile by tile. Logits
// count in powers of two.
namespace vleff::cuda {

// A block's shared memory: stationary rows of both sides, and a tile of streamed rows of each.
template <class Tile>
struct DistillationMemory {
  unsigned char *teacher, *student, *teacher_tile, *student_tile, *rest;
  static constexpr int bytes = 2 * Tile::stationary_bytes + 2 * Tile::streamed_bytes;

  __device__ explicit DistillationMemory(unsigned char* shared)
      : teacher(shared),
        student(teacher + Tile::stationary_bytes),
        teacher_tile(student + Tile::stationary_bytes),
        student_tile(teacher_tile + Tile::streamed_bytes),
        rest(student_tile + Tile::streamed_bytes) {}
};

// One model's rows of the stationary and of the streamed side, at one head.
template <class T>
struct DistillationOperands {
  HeadOperand<T> stationary, streamed;
  int head_dim;
};

template <class T>
__device__ DistillationOperands<T> operands_by_query(const DistillationSide& side, int head) {
  return {HeadOperand<T>(side.q, head), HeadOperand<T>(side.k, head), static_cast<int>(side.head_dim)};
}
template <class T>
__device__ DistillationOperands<T> operands_by_key(const DistillationSide& side, int head) {
  return {HeadOperand<T>(side.k, head), HeadOperand<T>(side.q, head), static_cast<int>(side.head_dim)};
}

// The stationary and the streamed side of a block.
struct DistillationRows {
  const RaggedSide &stationary_side, &streamed_side;
  SampleRows stationary, streamed;
  int first_stationary;
};

// Calls body(first, teacher's products, student's products) for all tiles of the sample's streamed rows in
// order. While one side's tile is multiplied, the other side's next one is loaded. `load_more(first)` starts
// further loads, into memory that body reads.
template <class Tile, class LoadMore, class Body>
__device__ __forceinline__ void for_each_tile(const DistillationMemory<Tile>& memory,
                                              const DistillationRows& rows,
                                              const DistillationOperands<typename Tile::Element>& teacher,
                                              const DistillationOperands<typename Tile::Element>& student,
                                              const Lane& lane, const LoadMore& load_more, const Body& body) {
  constexpr int step = Tile::streamed_rows;
  using Products = SumFragment[step / 8];
  const auto load_stationary = [&](unsigned char* target, const auto& operands) {
    load_rows<Tile, Tile::stationary_rows>(target, operands.stationary, rows.stationary_side, rows.stationary,
                                           rows.first_stationary, operands.head_dim);
  };
  const auto load_streamed = [&](unsigned char* target, const auto& operands, int first) {
    load_rows<Tile, step>(target, operands.streamed, rows.streamed_side, rows.streamed, first,
                          operands.head_dim);
  };
  load_stationary(memory.teacher, teacher);
  load_stationary(memory.student, student);
  load_streamed(memory.teacher_tile, teacher, 0);
  for (int first = 0; first < rows.streamed.count; first += step) {
    wait_for_copies();
    __syncthreads();  // the teacher's tile is in, and every warp has left the student's
    load_streamed(memory.student_tile, student, first);
    load_more(first);
    Products of_teacher = {}, of_student = {};
    multiply_rows<Tile>(of_teacher, memory.teacher, memory.teacher_tile, lane);
    wait_for_copies();
    __syncthreads();  // the student's tile is in, and every warp has left the teacher's
    if (first + step < rows.streamed.count) load_streamed(memory.teacher_tile, teacher, first + step);
    multiply_rows<Tile>(of_student, memory.student, memory.student_tile, lane);
    body(first, of_teacher, of_student);
  }
}

constexpr int statistics_of_query = 4;  // maximum and sum, of teacher and of student

// One side's softmax of one query, from its statistics.
struct Softmax {
  float maximum, factor;

  Softmax() = default;
  __device__ Softmax(float largest, float sum) : maximum(largest), factor(1.0f / sum) {}
  __device__ float of(float logit) const { return exp2_approximate(logit - maximum) * factor; }
};

}  // namespace vleff::cuda
