"""Pair-to-sequence models: questions written by beam search, and training steps. Real questions and paragraphs.

30,000 words that are all generated, width 300; weights are random, so a question goes on to its longest length, that of
its source and two words. The plain model is the same model in padded torch: it repeats memories for each beam, keeps
sources that are done in the batch, and scatters copied words into probabilities of all words. Its bidirectional LSTMs
turn texts around instead of packing them, which takes half the time of packed sequences on the CPU.

The Transformer is transformers' BART with as many parameters. It reads question, answer and paragraph as one text of
words, generates with a cache and copies nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from methods.unanswerable.corpus import paragraphs
from methods.unanswerable.plain import PlainPairToSequence
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import BartConfig, BartForConditionalGeneration

from vleff.unanswerable.batches import Batch
from vleff.unanswerable.beam_search import beam_search
from vleff.unanswerable.decoding import Rules
from vleff.unanswerable.generation import GenerationSettings, Hypothesis
from vleff.unanswerable.model import PairToSequence
from vleff.unanswerable.pairs import build_pairs
from vleff.unanswerable.source_words import SourceWords, source_words
from vleff.unanswerable.training import source_of
from vleff.unanswerable.vocabulary import Vocabulary
from vleff.unanswerable.words import lower_words
from vleff.unanswerable.writing import ModelSteps

WORDS, WIDTH = 30_000, 300
SOURCES, PAIRS = 16, 32
SETTINGS = GenerationSettings(beams=5, extra_words=2, max_words=60)
PAD, START, END = 0, 1, 2  # of the Transformer


@dataclass
class Case:
    """The models, and a batch of pairs."""

    model: PairToSequence
    plain: PlainPairToSequence
    items: list[tuple[SourceWords, list[str]]]
    batch: Batch

    def rules(self) -> Rules:
        lengths = self.batch["question_offsets"].diff().tolist()
        questions = [ids.tolist() for ids in self.batch["question_ids"].split(lengths)]
        return Rules(questions, [SETTINGS.longest(length) for length in lengths], SETTINGS.no_repeat)

    def write(self) -> list[list[Hypothesis]]:
        with torch.inference_mode():
            return beam_search(ModelSteps(self.model, self.batch), self.rules(), SETTINGS, 1)

    def write_plain(self) -> list[list[Hypothesis]]:
        with torch.inference_mode():
            return self.plain.search(self.batch, self.rules(), SETTINGS)


def make_case(count: int, with_targets: bool, dtype: torch.dtype = torch.float32) -> Case:
    torch.manual_seed(0)
    pairs = build_pairs(paragraphs())[:count]
    items = [(source_words(source_of(pair)), lower_words(pair.unanswerable)) for pair in pairs]
    known = Vocabulary.build(build_pairs(paragraphs()), minimum=2, minimum_generated=1)
    others = [f"word{number}" for number in range(WORDS - len(known) + 3)]
    vocabulary = Vocabulary([*known.words[3:], *others], WORDS, known.characters)
    model = PairToSequence.build(vocabulary, width=WIDTH).eval()
    plain = PlainPairToSequence(model).eval()
    batch = model.collator()([(source, target if with_targets else None) for source, target in items])
    return Case(model.to(dtype), plain.to(dtype), items, batch)


def make_transformer(parameters: int) -> Any:
    """BART with as many parameters, within 2 %."""
    config = BartConfig(
        vocab_size=WORDS + 3,
        d_model=320,
        encoder_layers=4,
        decoder_layers=4,
        encoder_attention_heads=5,
        decoder_attention_heads=5,
        encoder_ffn_dim=1472,
        decoder_ffn_dim=1472,
        max_position_embeddings=512,
        pad_token_id=PAD,
        bos_token_id=START,
        eos_token_id=END,
        decoder_start_token_id=START,
        forced_eos_token_id=None,
    )
    torch.manual_seed(0)
    transformer = BartForConditionalGeneration(config).eval()
    found = sum(parameter.numel() for parameter in transformer.parameters())
    assert abs(found / parameters - 1) < 0.02, f"{found} parameters, the model has {parameters}"
    return transformer


def transformer_inputs(case: Case) -> dict[str, Tensor]:
    """Question, answer and paragraph as one text."""
    vocabulary, rows = case.model.collator().vocabulary, []
    for source, _ in case.items:
        words = source.lower_question + source.lower_paragraph[slice(*source.answer)] + source.lower_paragraph
        rows.append(torch.tensor([vocabulary.number(word) for word in words]))
    ids = pad_sequence(rows, batch_first=True, padding_value=PAD)
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.benchmark(group="16 questions by 5 beams, 30,000 words, width 300")
def test_generation(interleaved: Callable[..., None], dtype: torch.dtype) -> None:
    case = make_case(SOURCES, with_targets=False, dtype=dtype)
    check_searches(case, dtype)
    transformer = make_transformer(sum(parameter.numel() for parameter in case.model.parameters())).to(dtype)
    inputs = transformer_inputs(case)
    longest = int(case.rules().longest.max()) + 1

    def write_by_transformer() -> Tensor:
        with torch.inference_mode():
            return transformer.generate(
                **inputs,
                num_beams=SETTINGS.beams,
                min_new_tokens=longest,
                max_new_tokens=longest,
                no_repeat_ngram_size=SETTINGS.no_repeat,
            )

    baselines = {"plain torch": case.write_plain, "Transformer": write_by_transformer}
    interleaved(case.write, baselines, {"plain torch": 3.0, "Transformer": 2.0}, budget=60)


def check_searches(case: Case, dtype: torch.dtype) -> None:
    """Both find questions that are as good. Random weights have many that are about equal."""
    found, expected = case.write(), case.write_plain()
    tolerance = 1e-4 if dtype == torch.float32 else 0.05
    for ours, theirs in zip(found, expected, strict=True):
        difference = abs(ours[0].score - theirs[0].score)
        assert difference <= tolerance, f"outputs differ: scores by {difference:.1e}"


@pytest.mark.benchmark(group="A training step, 32 pairs, 30,000 words, width 300")
def test_training_step(interleaved: Callable[..., None]) -> None:
    case = make_case(PAIRS, with_targets=True)
    with torch.no_grad():
        exact = PlainPairToSequence(case.model).double().eval()(case.batch)[0]
        error = (case.model(**case.batch).log_probs - exact).abs().max()
        plain_error = (case.plain(case.batch)[0] - exact).abs().max()
    assert error <= 2 * plain_error, (
        f"outputs differ: error {error:.1e} against fp64, plain torch has {plain_error:.1e}"
    )

    def step_of(model: nn.Module, loss_of: Callable[[], Tensor]) -> Callable[[], Tensor]:
        optimizer = torch.optim.AdamW(model.train().parameters(), 1e-3, fused=True)

        def step() -> Tensor:
            loss = loss_of()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            optimizer.zero_grad()
            return loss.detach()

        return step

    ours = step_of(case.model, lambda: case.model(**case.batch).loss)
    plain = step_of(case.plain, lambda: case.plain.loss(case.batch))
    interleaved(ours, {"plain torch": plain}, {"plain torch": 1.5}, budget=60)
