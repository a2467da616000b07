"""T5 and BART as generators: their search is that of transformers, and they are trained, saved and loaded."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from methods.unanswerable.generators import model, pairs, sources, tokenizer
from transformers import BartConfig, BartForConditionalGeneration, T5Config, T5ForConditionalGeneration

import vleff
from vleff.unanswerable.generation import GenerationSettings
from vleff.unanswerable.loading import load_generator
from vleff.unanswerable.model import PairToSequence
from vleff.unanswerable.seq2seq import Seq2SeqGenerator
from vleff.unanswerable.training import GeneratorTraining, train_generator

START, END, PAD = 101, 102, 0  # [CLS], [SEP], [PAD] of BERT's vocabulary
SETTINGS = GenerationSettings(may_copy=True, no_repeat=0, max_words=8, beams=4)


def t5() -> Any:
    config = T5Config(
        vocab_size=30522,
        d_model=32,
        d_kv=16,
        num_heads=2,
        d_ff=48,
        num_layers=2,
        decoder_start_token_id=PAD,
        eos_token_id=END,
        pad_token_id=PAD,
    )
    return T5ForConditionalGeneration(config).eval()


def bart() -> Any:
    config = BartConfig(
        vocab_size=30522,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        decoder_start_token_id=END,
        forced_bos_token_id=START,
        bos_token_id=START,
        eos_token_id=END,
        pad_token_id=PAD,
        forced_eos_token_id=None,
        init_std=0.3,
    )
    return BartForConditionalGeneration(config).eval()


@pytest.fixture(params=[t5, bart])
def generator(request: pytest.FixtureRequest) -> Seq2SeqGenerator:
    return Seq2SeqGenerator(request.param(), tokenizer(), SETTINGS)


def test_batches_are_made_on_the_cpu_wherever_the_model_is(generator: Seq2SeqGenerator) -> None:
    """The Trainer pins them, which goes from there only, and moves them."""
    generator.model.to("meta")
    batch = generator.collate([("Who ran?", "Who did not run?")])
    assert {x.device.type for x in batch.values()} == {"cpu"}


def test_greedy_is_that_of_transformers(generator: Seq2SeqGenerator) -> None:
    own = generator.tokenizer
    never = [[i] for i in own.all_special_ids if i != END]
    settings = replace(SETTINGS, beams=1, length_penalty=0.0)
    for source in sources(4):
        inputs = own(generator.text_of(source), return_tensors="pt")
        longest = settings.longest(len(own.encode(source.question, add_special_tokens=False)))
        forced = 2 if len(generator._start) == 2 else 1
        written = generator.model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            do_sample=False,
            num_beams=1,
            min_new_tokens=forced,
            max_new_tokens=longest + forced - 1,
            bad_words_ids=never if forced == 1 else None,
        )
        expected = own.decode(written[0], skip_special_tokens=True)
        (found,) = generator.generate([source], settings=settings)[0]
        assert found.text == expected and found.text


def test_beams_are_scored_by_their_log_probability(generator: Seq2SeqGenerator) -> None:
    some = sources(5)
    for source, candidates in zip(some, generator.generate(some, count=4), strict=True):
        assert 1 <= len(candidates) <= 4
        inputs = generator.tokenizer(generator.text_of(source), return_tensors="pt")
        for one in candidates[:1]:
            words = generator.tokenizer.encode(one.text, add_special_tokens=False)
            decoded = torch.tensor([[*generator._start, *words]])
            with torch.no_grad():
                logits = generator.model(
                    input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], decoder_input_ids=decoded
                ).logits[0]
            rows = logits[len(generator._start) - 1 :].log_softmax(1)
            total = sum(rows[place, word].item() for place, word in enumerate([*words, END]))
            # a text may be made of other tokens than those that were written
            assert one.score >= total / (len(words) + 1) - 1e-3 or len(words) != len(one.text.split())


@pytest.mark.parametrize("settings", [{}, {"groups": 2}, {"sample": True}])
def test_order_and_batch_change_no_text(generator: Seq2SeqGenerator, settings: dict[str, Any]) -> None:
    generator.settings = replace(SETTINGS, **settings)
    some = sources(5)
    together = generator.generate(some)
    alone = [generator.generate([source])[0] for source in reversed(some)]
    for one, other in zip(together, reversed(alone), strict=True):
        assert one[0].score == pytest.approx(other[0].score, abs=1e-4)


def test_accelerated_it_writes_the_same(generator: Seq2SeqGenerator) -> None:
    plain = generator.generate(sources(4), count=2)
    vleff.accelerate(generator.model)
    for one, other in zip(generator.generate(sources(4), count=2), plain, strict=True):
        assert [round(x.score, 4) for x in one] == pytest.approx([round(x.score, 4) for x in other], abs=2e-4)


def test_trained_saved_and_loaded(generator: Seq2SeqGenerator, tmp_path: Path) -> None:
    training = GeneratorTraining(steps=3, batch=4, save_steps=2, learning_rate=1e-3)
    before = generator.model.get_input_embeddings().weight.detach().clone()
    assert train_generator(generator, pairs()[:8], training, tmp_path / "training", quiet=True) is generator
    assert not generator.model.training
    assert not torch.equal(generator.model.get_input_embeddings().weight, before)
    generator.max_paragraph_words = 33
    generator.save_pretrained(tmp_path / "model")
    loaded = load_generator(tmp_path / "model", SETTINGS)
    assert isinstance(loaded, Seq2SeqGenerator) and loaded.max_paragraph_words == 33
    plain = load_generator(tmp_path / "model", SETTINGS, accelerate=False)
    assert plain.generate(sources(3)) == generator.generate(sources(3))
    text = (tmp_path / "model" / "seq2seq_generator.json").read_text()
    (tmp_path / "model" / "seq2seq_generator.json").write_text(text.replace('"format": 1', '"format": 2'))
    with pytest.raises(ValueError, match="expected format 1"):
        load_generator(tmp_path / "model")


def test_a_folder_has_either_kind_or_none(tmp_path: Path) -> None:
    model().save_pretrained(tmp_path / "lstm")
    loaded = load_generator(tmp_path / "lstm", GenerationSettings(beams=2))
    assert isinstance(loaded, PairToSequence) and loaded.settings.beams == 2
    with pytest.raises(FileNotFoundError, match=r"expected a generator, with vocabulary\.json or"):
        load_generator(tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no Seq2SeqGenerator"):
        Seq2SeqGenerator.from_pretrained(tmp_path / "lstm")


def test_bad_sources() -> None:
    generator = Seq2SeqGenerator(t5(), tokenizer())
    with pytest.raises(ValueError, match="expected a question with words"):
        generator.generate([replace(sources(1)[0], question="")])
    with pytest.raises(ValueError, match="expected the answer"):
        generator.generate([replace(sources(1)[0], answer_start=3)])
    with pytest.raises(ValueError, match="argument 'count'"):
        generator.generate(sources(1), count=0)
