"""Vocabularies, words of sources, and the batches that are made of them."""

import json
from pathlib import Path

import pytest
import torch
from methods.unanswerable.generators import items, pairs, tokenizer, vocabulary

from vleff.data.squad import Answer
from vleff.unanswerable.batches import ANSWER_TYPE, PARAGRAPH_TYPE, SourceCollator
from vleff.unanswerable.pairs import QuestionPair
from vleff.unanswerable.source_words import SourceWords, cut_paragraph, source_words
from vleff.unanswerable.sources import GenerationSource
from vleff.unanswerable.vocabulary import SPECIAL, Vocabulary

TEA = "Tea comes from China and milk from cows"


def pair(unanswerable: str, answerable: str = "where is tea from", context: str = TEA) -> QuestionPair:
    return QuestionPair("1", context, Answer("China", 15), answerable, unanswerable)


def test_vocabulary_of_pairs() -> None:
    made = Vocabulary.build([pair("Where is milk from?"), pair("where is no milk"), pair("where")])
    assert made.words[: len(SPECIAL)] == SPECIAL
    assert made.words[3 : made.generated] == ("where", "is", "milk")
    # a paragraph counts once, whatever it is asked
    assert made.words[made.generated :] == ("from", "tea", "?", "and", "china", "comes", "cows", "no")
    assert made.number("milk") == 5 and made.number("coffee") == made.number("?!") == 1
    assert [made.words[made.number(word)] for word in ("tea", "where")] == ["tea", "where"]
    assert Vocabulary.build([pair("a b")], size=1, minimum_generated=1).words[3:] == ("a",)
    small = Vocabulary.build([pair("a b a"), pair("a")], size=4, minimum=3)
    assert small.words[3:] == ("a", "from", "tea") and small.generated == 4
    assert "q" not in made.characters and made.spell("tq")[1] == 1 and len(made.spell("x" * 99)) == 20
    assert made.spell("<start>") == []


def test_vocabulary_is_saved_as_it_is(tmp_path: Path) -> None:
    vocabulary().save(tmp_path)
    assert Vocabulary.load(tmp_path) == vocabulary() and hash(Vocabulary.load(tmp_path)) == hash(vocabulary())
    assert vocabulary() != Vocabulary(["a"], 1, []) and vocabulary() != "words"
    content = json.loads((tmp_path / "vocabulary.json").read_text())
    (tmp_path / "vocabulary.json").write_text(json.dumps(content | {"format": 7}))
    with pytest.raises(ValueError, match="expected format 1, got 7"):
        Vocabulary.load(tmp_path)


def test_bad_vocabularies() -> None:
    with pytest.raises(ValueError, match="'words': expected none twice, got 'a' twice"):
        Vocabulary(["a", "b", "a"], 1, [])
    with pytest.raises(ValueError, match="'words': expected none twice, got '<end>' twice"):
        Vocabulary(["<end>"], 1, [])
    with pytest.raises(ValueError, match="'characters': expected none twice"):
        Vocabulary([], 0, "xx")
    with pytest.raises(ValueError, match="'generated': expected 0 to 1"):
        Vocabulary(["a"], 2, [])
    with pytest.raises(ValueError, match="'pairs': expected at least one"):
        Vocabulary.build([])
    with pytest.raises(ValueError, match="'size': expected at least 1"):
        Vocabulary.build([pair("a")], size=0)


def source(answer: str, start: int, paragraph: str = TEA) -> GenerationSource:
    return GenerationSource("Where is tea from?", paragraph, answer, start)


def test_words_of_sources() -> None:
    read = source_words(source("China", 15))
    assert read.question == ("Where", "is", "tea", "from", "?") and read.lower_question[0] == "where"
    assert read.paragraph == tuple(TEA.split()) and read.lower_paragraph[0] == "tea" and read.answer == (3, 4)
    assert source_words(source("from Chi", 10)).answer == (2, 4)
    assert source_words(source("China", 15), max_question=2).question == ("Where", "is")


@pytest.mark.parametrize(
    ("answer", "start", "most", "kept", "place"),
    [
        ("China", 15, 3, "from China and", (1, 2)),
        ("China", 15, 4, "comes from China and", (2, 3)),
        ("Tea", 0, 3, "Tea comes from", (0, 1)),
        ("cows", 35, 3, "milk from cows", (2, 3)),
        ("comes from China and", 4, 2, "comes from", (0, 2)),
        ("China", 15, 1, "China", (0, 1)),
        ("China", 15, 8, TEA, (3, 4)),
        ("China", 15, 99, TEA, (3, 4)),
    ],
)
def test_paragraphs_are_cut_around_the_answer(
    answer: str, start: int, most: int, kept: str, place: tuple[int, int]
) -> None:
    read = source_words(source(answer, start), max_paragraph=most)
    assert read.paragraph == tuple(kept.split()) and read.answer == place
    assert cut_paragraph(source(answer, start), most) == kept


def test_a_batch() -> None:
    words = Vocabulary(["tea", "is", "where", "from"], 3, "aet")
    first = SourceWords(("Where", "is", "tea"), ("Tea", "from", "Assam"), (0, 1))
    second = SourceWords(("Is",), ("assam", "x"), (1, 2))
    batch = SourceCollator(words)([(first, ["is", "assam", "milk", "from"]), (second, ["x"])])
    distinct = {
        name: [words.words[batch["words"][number]] for number in batch[f"{name}_words"]]
        for name in ("question", "paragraph")
    }
    assert distinct == {
        "question": ["where", "is", "tea", "is"],
        "paragraph": ["tea", "from", "<unknown>", "<unknown>", "<unknown>"],
    }
    assert batch["paragraph_words"][2] == batch["paragraph_words"][3] != batch["paragraph_words"][4]
    # numbers of the extended vocabulary, whose first 6 words are generated
    assert batch["question_ids"].tolist() == [5, 4, 3, 4]
    assert batch["paragraph_ids"].tolist() == [3, 6, 7, 6, 7] and batch["extended_size"] == 8
    assert batch["extended_offsets"].tolist() == [0, 2, 4]
    assert batch["question_offsets"].tolist() == [0, 3, 4] and batch["max_question"] == 3
    assert batch["paragraph_types"].tolist() == [ANSWER_TYPE, *[PARAGRAPH_TYPE] * 3, ANSWER_TYPE]
    assert batch["answer_rows"].tolist() == [0, 4] and batch["answer_offsets"].tolist() == [0, 1]
    assert batch["targets"].tolist() == [4, 7, 8, 6, 0, 7, 0] and batch["max_target"] == 5
    inputs = [words.words[batch["words"][number]] for number in batch["inputs"]]
    assert inputs == ["<start>", "is", "<unknown>", "<unknown>", "from", "<start>", "<unknown>"]
    # letters of "tea": none, t, e; t, e, a; e, a, none
    begin = int(batch["word_lengths"][: int(batch["question_words"][2])].sum())
    assert batch["letters"][begin : begin + 3].tolist() == [[0, 5 + 4, 10 + 3], [4, 5 + 3, 10 + 2], [3, 5 + 2, 10]]
    assert batch["word_lengths"].sum() == len(batch["letters"])


def test_a_batch_without_targets() -> None:
    batch = SourceCollator(vocabulary())([(words, None) for words, _ in items()])
    assert "targets" not in batch and all(
        tensor.shape[0] for tensor in batch.values() if isinstance(tensor, torch.Tensor)
    )


def test_tokens_of_a_transformer() -> None:
    own = tokenizer()
    odd = SourceWords(("\u200b", "Where", "unbelievableness"), ("a", *["word"] * 700, "end"), (1, 2))
    batch = SourceCollator(vocabulary(), own)([(odd, None), items(3)[0]])
    firsts = own.convert_ids_to_tokens(batch["question_input_ids"].flatten()[batch["question_first"]][:3].tolist())
    assert firsts == ["[CLS]", "where", "unbelievable"]
    assert (
        batch["paragraph_input_ids"].shape == (3, 512)
        and len(batch["paragraph_first"]) == batch["paragraph_offsets"][-1]
    )
    tokens = own.convert_ids_to_tokens(batch["paragraph_input_ids"].flatten()[batch["paragraph_first"]].tolist())
    assert tokens[:702] == ["a", *["word"] * 700, "end"]
    assert len(pairs()) > 60
