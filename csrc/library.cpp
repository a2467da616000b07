#include <torch/csrc/stable/library.h>

#include <vector>

// All schemas of the library. Each op's implementation registers itself in csrc/ops.
STABLE_TORCH_LIBRARY(vleff, library) {
  const std::vector<at::Tag> traceable = {at::Tag::pt2_compliant_tag};

  library.def("build_info() -> str");
  library.def("cpu_isa() -> str");
  library.def("set_cpu_isa(str name) -> ()");
  library.def("cpu_isa_levels() -> str[]");

  // Tensors come before the star: torch.library.register_autograd takes no keyword-only ones.
  library.def(
      "token_gather_attention(Tensor q, Tensor k, Tensor v, Tensor q_offsets, Tensor k_offsets, SymInt "
      "max_q, "
      "SymInt max_k, Tensor? q_index=None, Tensor? k_index=None, Tensor? head_mask=None, "
      "Tensor? key_bias=None, Tensor? seed=None, *, float scale, bool causal=False, float dropout_p=0.0, "
      "bool importance=False) -> (Tensor out, Tensor lse, Tensor importance)",
      traceable);
  library.def(
      "token_gather_attention_backward(Tensor grad_out, Tensor? grad_lse, Tensor q, Tensor k, Tensor v, "
      "Tensor out, Tensor lse, Tensor q_offsets, Tensor k_offsets, SymInt max_q, SymInt max_k, "
      "Tensor? q_index=None, Tensor? k_index=None, Tensor? head_mask=None, Tensor? key_bias=None, "
      "Tensor? seed=None, *, float scale, bool causal=False, float dropout_p=0.0, bool "
      "key_bias_grad=False) -> "
      "(Tensor grad_q, Tensor grad_k, Tensor grad_v, Tensor grad_key_bias)",
      traceable);

  library.def(
      "fused_linear(Tensor input, Tensor weight, Tensor? bias=None, Tensor? residual=None, "
      "str activation='none') -> Tensor",
      traceable);
  library.def("packs_linear_weight(ScalarType dtype) -> bool");
  library.def("pack_linear_weight(Tensor weight) -> Tensor");
  library.def("unpack_linear_weight(Tensor packed) -> Tensor");

  library.def(
      "residual_layer_norm(Tensor input, Tensor? residual, Tensor weight, Tensor bias, float eps, "
      "bool return_sum=False) -> (Tensor normalized, Tensor sum)",
      traceable);

  library.def(
      "head_masked_project(Tensor input, Tensor weight, Tensor offsets, Tensor? head_mask=None, "
      "Tensor? bias=None, Tensor? index=None, int parts=1, int? heads=None) -> Tensor",
      traceable);
  library.def(
      "head_masked_reduce(Tensor input, Tensor weight, Tensor offsets, Tensor? head_mask=None, "
      "Tensor? bias=None, Tensor? residual=None) -> Tensor",
      traceable);
  library.def(
      "head_masked_grad_weight(Tensor of_features, Tensor of_width, Tensor offsets, Tensor? head_mask=None, "
      "Tensor? index=None, int parts=1, bool bias_grad=False) -> (Tensor grad_weight, Tensor grad_bias)",
      traceable);
  library.def("sum_rows(Tensor rows, Tensor index, SymInt stored) -> Tensor", traceable);
  library.def("pack_head_masked_weight(Tensor weight, str direction, int heads, int parts=1) -> Tensor",
              traceable);

  library.def(
      "trim_tokens(Tensor values, Tensor parts, Tensor local_weight, Tensor global_weight, "
      "Tensor hidden_weight, Tensor hidden_bias, Tensor score_weight, Tensor score_bias, Tensor? other=None, "
      "Tensor? other_weight=None, Tensor? temperature=None, Tensor? pinned=None, bool paired=False, "
      "float threshold=0.0, float eps=1e-5) -> "
      "(Tensor survivors, Tensor kept_parts, Tensor pooled, Tensor logits)",
      traceable);
  library.def(
      "trim_heads(Tensor pooled, Tensor? memory_pooled, Tensor hidden_weight, Tensor hidden_bias, "
      "Tensor score_weight, Tensor score_bias, float threshold=0.0) -> (Tensor kept, Tensor logits)",
      traceable);

  library.def(
      "masked_linear(Tensor input, Tensor values, Tensor starts, Tensor order, Tensor block_columns, "
      "int rows, int row_chunk, int column_block, Tensor? bias=None, Tensor? residual=None, "
      "str activation='none', Tensor? step_values=None, Tensor? step_block_columns=None, "
      "Tensor? transposed_starts=None, Tensor? transposed_order=None, "
      "Tensor? transposed_block_columns=None, Tensor? transposed_elements=None) -> Tensor",
      traceable);
  library.def(
      "masked_feed_forward(Tensor input, Tensor first_values, Tensor first_starts, Tensor first_order, "
      "Tensor first_block_columns, int first_rows, int first_row_chunk, int first_column_block, "
      "Tensor? first_bias, str activation, Tensor second_values, Tensor second_starts, Tensor second_order, "
      "Tensor second_block_columns, int second_rows, int second_row_chunk, int second_column_block, "
      "Tensor? second_bias=None, Tensor? residual=None) -> Tensor",
      traceable);
  library.def(
      "masked_linear_grad_values(Tensor grad_out, Tensor input, Tensor starts, Tensor order, "
      "Tensor block_columns, int row_chunk, int column_block) -> Tensor",
      traceable);

  library.def(
      "attention_distillation(Tensor teacher_q, Tensor teacher_k, Tensor student_q, Tensor student_k, "
      "Tensor q_offsets, Tensor k_offsets, SymInt max_q, SymInt max_k, *, float teacher_scale, "
      "float student_scale) -> (Tensor divergence, Tensor statistics)",
      traceable);
  library.def(
      "attention_distillation_backward(Tensor grad_divergence, Tensor teacher_q, Tensor teacher_k, "
      "Tensor student_q, Tensor student_k, Tensor statistics, Tensor q_offsets, Tensor k_offsets, SymInt "
      "max_q, SymInt max_k, *, float teacher_scale, float student_scale) -> "
      "(Tensor grad_student_q, Tensor grad_student_k)",
      traceable);

  library.def(
      "ragged_lstm(Tensor gates, Tensor weight, Tensor offsets, SymInt max_length, Tensor? "
      "initial_hidden=None, "
      "Tensor? initial_cell=None, *, bool activations=False) -> (Tensor hidden, Tensor cell, Tensor "
      "activated)",
      traceable);
  library.def(
      "ragged_lstm_backward(Tensor grad_hidden, Tensor cell, Tensor activated, Tensor gates, Tensor weight, "
      "Tensor offsets, SymInt max_length, Tensor? initial_hidden=None, Tensor? initial_cell=None) -> "
      "(Tensor grad_gates, Tensor grad_initial_hidden, Tensor grad_initial_cell)",
      traceable);

  library.def(
      "vocabulary_log_probs(Tensor hidden, Tensor weight, Tensor? bias, Tensor targets) -> "
      "(Tensor log_probs, Tensor statistics)",
      traceable);
  library.def(
      "vocabulary_log_probs_backward(Tensor grad_log_probs, Tensor hidden, Tensor weight, Tensor? bias, "
      "Tensor targets, Tensor statistics) -> (Tensor grad_hidden, Tensor grad_weight, Tensor grad_bias)",
      traceable);

  library.def(
      "copy_attention(Tensor queries, Tensor query_offsets, SymInt max_queries, Tensor question_keys, "
      "Tensor question_ids, Tensor question_offsets, SymInt max_question, Tensor paragraph_keys, Tensor "
      "paragraph_ids, Tensor paragraph_offsets, SymInt max_paragraph, Tensor gate_logits, Tensor "
      "generate_log_probs, Tensor targets, *, float scale, bool coverage=False) -> (Tensor log_probs, "
      "Tensor coverage_loss, Tensor statistics)",
      traceable);
  library.def(
      "copy_attention_backward(Tensor grad_log_probs, Tensor? grad_coverage_loss, Tensor log_probs, "
      "Tensor statistics, Tensor queries, Tensor query_offsets, SymInt max_queries, Tensor "
      "question_keys, Tensor question_ids, Tensor question_offsets, SymInt max_question, Tensor "
      "paragraph_keys, Tensor paragraph_ids, Tensor paragraph_offsets, SymInt max_paragraph, Tensor "
      "gate_logits, Tensor generate_log_probs, Tensor targets, *, float scale) -> (Tensor grad_queries, "
      "Tensor grad_question_keys, Tensor grad_paragraph_keys, Tensor grad_gate_logits, Tensor "
      "grad_generate_log_probs)",
      traceable);
  library.def(
      "copy_attention_rows(Tensor queries, Tensor query_offsets, SymInt max_queries, Tensor "
      "question_keys, Tensor question_ids, Tensor question_offsets, SymInt max_question, Tensor "
      "paragraph_keys, Tensor paragraph_ids, Tensor paragraph_offsets, SymInt max_paragraph, Tensor "
      "gate_logits, Tensor vocabulary_logits, SymInt extended_size, *, float scale) -> Tensor",
      traceable);
  library.def(
      "copy_attention_top(Tensor queries, Tensor query_offsets, SymInt max_queries, Tensor question_keys, "
      "Tensor question_ids, Tensor question_offsets, SymInt max_question, Tensor paragraph_keys, Tensor "
      "paragraph_ids, Tensor paragraph_offsets, SymInt max_paragraph, Tensor gate_logits, Tensor hidden, "
      "Tensor weight, Tensor? bias, SymInt extended_size, int count, int watched, *, float scale) -> "
      "(Tensor log_probs, Tensor words, Tensor watched_log_probs)",
      traceable);

  library.def("top_words(Tensor rows, int count) -> (Tensor values, Tensor words)", traceable);
}
