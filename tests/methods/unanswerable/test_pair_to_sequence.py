"""PairToSequence against the same model in plain padded torch: log-probabilities, gradients, searches."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from attention_cases import assert_same_bits
from fake_cuda import fake_cuda
from methods.unanswerable.generators import bert_model, items, model, small_bert, sources, tokenizer, vocabulary
from methods.unanswerable.plain import PlainPairToSequence, parameters_in_order
from torch import Tensor

import vleff
from vleff.nn.ragged import RaggedBatch
from vleff.unanswerable.config import PairToSequenceConfig
from vleff.unanswerable.model import PairToSequence
from vleff.unanswerable.source_words import SourceWords

MODELS = {"lstm": model, "transformer": bert_model}


def odd_items() -> list[tuple[SourceWords, list[str]]]:
    """One word of everything; unknown words and letters; an empty answer; a target that cannot be written."""
    one = SourceWords(("Why",), ("Because",), (0, 1))
    odd = SourceWords(("Ωmega", "zzzq", "is", "?"), ("ωmega", "☃", "zzzq", "the", "."), (2, 2))
    return [(one, ["why"]), (odd, ["ωmega", "☃", "unwritable", "?"]), (one, [])]


@pytest.mark.parametrize("places", [0, 3, 64])
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("which", [items, odd_items])
def test_log_probs_are_those_of_plain_torch(make: Any, which: Any, places: int) -> None:
    ours = make(coverage=0.5, places=places)
    batch = ours.collator()(which())
    output = ours(**batch)
    plain = PlainPairToSequence(ours).double()
    log_probs, coverage = plain(batch)
    impossible = log_probs == -torch.inf
    assert impossible.sum() == (which is odd_items) and torch.equal(output.log_probs == -torch.inf, impossible)
    torch.testing.assert_close(output.log_probs.double(), log_probs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output.coverage_loss.double(), coverage, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output.loss.double(), plain.loss(batch), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("which", [items, odd_items])
def test_gradients_are_those_of_plain_torch(which: Any) -> None:
    ours = model(coverage=0.5, dropout=0.0)
    batch = ours.collator()(which())
    plain = PlainPairToSequence(ours).double()
    ours.train()(**batch).loss.backward()
    plain.loss(batch).backward()
    parameters = parameters_in_order(ours, plain)
    gradients = dict(ours.named_parameters())
    assert len(parameters) == len(gradients)
    by_shape = {id(parameter): parameter.grad for parameter in gradients.values()}
    for name, parameter, theirs in parameters:
        base = parameter if id(parameter) in by_shape else parameter._base
        found = by_shape[id(base)].view(parameter.shape).double()
        expected = torch.cat([one.grad for one in theirs])
        assert (found - expected).abs().max() <= 1e-5 * max(1, expected.abs().max()), name


def test_gradients_reach_a_transformer() -> None:
    ours = bert_model(dropout=0.0)
    batch = ours.collator()(items())
    loss = ours(**batch).loss
    unused = {name for name, parameter in ours.named_parameters() if "pooler" in name}
    gradients = torch.autograd.grad(
        loss, [parameter for name, parameter in ours.named_parameters() if name not in unused]
    )
    assert all(gradient.isfinite().all() for gradient in gradients)
    accelerated = vleff.accelerate(copy.deepcopy(ours))
    torch.testing.assert_close(accelerated(**batch).loss, loss, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_a_sample_does_not_depend_on_its_batch_mates(make: Any) -> None:
    ours = make()
    if make is bert_model:
        vleff.accelerate(ours)
    collate = ours.collator()
    every = [*items(), *odd_items()]
    with torch.inference_mode():
        together = collate(every)
        parts = ours(**together).log_probs.split(together["target_offsets"].diff().tolist())
        for size in (1, 2, 4):
            for first in range(0, len(every), size):
                alone = collate(every[first : first + size])
                found = ours(**alone).log_probs.split(alone["target_offsets"].diff().tolist())
                for one, expected in zip(found, parts[first : first + size], strict=True):
                    assert_same_bits(one, expected)


def test_on_a_gpu_no_value_is_read_and_no_device_is_mixed() -> None:
    """As far as shapes go."""
    batch = model().collator()(items())
    with fake_cuda(allow_non_fake_inputs=True):
        with torch.device("cuda"):
            ours = PairToSequence.build(vocabulary(), width=32, heads=2, coverage=1.0)
        there = {name: x.to("cuda") if isinstance(x, Tensor) else x for name, x in batch.items()}
        outputs = ours.train()(**there)
        assert {x.device.type for x in outputs.values()} == {"cuda"}
        with torch.no_grad():
            question, paragraph = ours.eval().encoder(ours.embedding(there)[0], there)
            memory = ours.decoder.remember(question, paragraph, there)
            hidden, cell = ours.decoder.start(question, paragraph, there)
            beams = RaggedBatch(hidden, torch.arange(len(hidden) + 1, dtype=torch.int32, device="cuda"), 1)
            decoded, hidden, cell = ours.decoder.step(hidden, hidden, cell, beams, memory, 3)
            found = ours.decoder.copy.likeliest(decoded, memory.copied, memory.extended_size, 5, 1)
            rows = ours.decoder.copy.rows(decoded, memory.copied, memory.extended_size)
        assert {x.device.type for x in (hidden, cell, *found, rows)} == {"cuda"}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_saved_and_loaded(make: Any, tmp_path: Path) -> None:
    ours = make(coverage=0.25, max_paragraph_words=77)
    ours.save_pretrained(tmp_path / "model")
    loaded = PairToSequence.from_pretrained(tmp_path / "model")
    assert not loaded.training and loaded.vocabulary == ours.vocabulary
    assert loaded.config.max_paragraph_words == 77 and loaded.config.coverage == 0.25
    assert {path.suffix for path in (tmp_path / "model").iterdir() if path.is_file()} == {".json", ".safetensors"}
    state = loaded.state_dict()
    assert state.keys() == ours.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in ours.state_dict().items())
    assert loaded.generate(sources(2)) == ours.generate(sources(2))
    (tmp_path / "model" / "vocabulary.json").unlink()
    with pytest.raises(FileNotFoundError):
        PairToSequence.from_pretrained(tmp_path / "model")


def test_bfloat16() -> None:
    ours = model()
    batch = ours.collator()(items())
    expected = ours(**batch).loss
    loss = ours.bfloat16()(**batch).loss
    assert loss.dtype == torch.float32 and abs(loss - expected) < 0.05
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in ours.parameters())
    assert len(ours.generate(sources(2), count=3)[0]) == 3


def test_a_model_without_vocabulary_or_tokenizer_says_so() -> None:
    bare = PairToSequence(model().config)
    with pytest.raises(ValueError, match="the model has no vocabulary"):
        bare.generate(sources(1))
    encoder = bert_model()
    encoder.tokenizer = None
    with pytest.raises(ValueError, match="the model has no tokenizer"):
        encoder.generate(sources(1))
    with pytest.raises(TypeError, match="argument 'tokenizer': expected a fast tokenizer, got object"):
        PairToSequence.from_encoder(small_bert(), object(), vocabulary())
    with pytest.raises(TypeError, match="argument 'encoder': expected the model that its config stands for, BertModel"):
        PairToSequence.from_encoder(torch.nn.Module.__new__(_Other), tokenizer(), vocabulary(), width=32, heads=2)


class _Other(torch.nn.Module):
    config = small_bert().config


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("encoder", "gru"),
        ("encoder_config", {"model_type": "bert"}),
        ("vocabulary_size", 3),
        ("generated_words", 400_000),
        ("width", 31),
        ("width", 34),
        ("heads", 0),
        ("dropout", 1.0),
        ("coverage", -1.0),
        ("max_paragraph_words", 0),
    ],
)
def test_bad_config(argument: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"argument '{argument}': expected .+, got "):
        PairToSequenceConfig(**{"width": 32, "heads": 4, argument: value})
    with pytest.raises(ValueError, match="argument 'encoder_config': expected a config"):
        PairToSequenceConfig(encoder="transformer")


def test_long_paragraphs_of_a_transformer_are_read_in_windows() -> None:
    ours = bert_model(max_paragraph_words=10_000)
    long = replace(sources(3)[-1], paragraph=sources(3)[-1].paragraph + " Tea grows in China." * 300)
    (found,) = ours.generate([long])
    assert found and found[0].text
    from vleff.unanswerable.source_words import source_words

    batch = ours.collator()([(source_words(long, 60, 10_000), None)])
    assert batch["paragraph_input_ids"].shape[0] > 2
    tokens = batch["paragraph_input_ids"].flatten()[batch["paragraph_first"]]
    words = ours.tokenizer.convert_ids_to_tokens(tokens[-5:].tolist())
    assert words == ["tea", "grows", "in", "china", "."]
