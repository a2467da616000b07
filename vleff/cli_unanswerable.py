"""The command `vleff unanswerable`."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vleff.terminal import console, failures, say

app = typer.Typer(help="Unanswerable questions made from answerable ones.", no_args_is_help=True)
errors = Console(stderr=True)

SQUAD2_HELP = "A SQuAD 2.0 file (.json, .json.gz)."
SQUAD_HELP = "A SQuAD file (.json, .json.gz, 1.1 or 2.0)."
PAIRS_HELP = "Pairs: .jsonl of `vleff unanswerable pairs`, a SQuAD 2.0 file, or PREFIX of the three released tables."
GENERATOR_HELP = '"swap", without training; "small", which comes with vleff; or the folder that `train` made.'
MODEL_HELP = "The checkpoint that transformer (an encoder) or seq2seq (T5, BART) start from."
SWAPS_OF_HELP = "A SQuAD file: the generator learns from swaps of its answerable questions first."
BEAMS_HELP = "Hypotheses that a trained generator follows."
SAMPLE_HELP = "A trained generator draws words instead of searching for the likeliest."
READER_HELP = "A question answering checkpoint trained on SQuAD 2.0: a folder, or a name on the hub."
THRESHOLD_HELP = 'By how much "no answer" has to beat the best answer, in logits.'
JOB_HELP = "The folder to write, augmented.json and others; an interrupted call with the same one goes on."
WORKERS_HELP = "Processes; 0 is one a core, or one where there is a GPU."
_SHOWN = 20


@app.command()
def pairs(
    data: Annotated[Path, typer.Argument(help=SQUAD2_HELP)],
    output: Annotated[Path, typer.Option(help="The folder to write: train, development and test.jsonl.")],
    development: Annotated[float, typer.Option(help="Share of the questions for development.")] = 0.1,
    test: Annotated[float, typer.Option(help="Share of the questions for the test.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Of the choice of articles.")] = 0,
) -> None:
    """Pair up answerable and unanswerable questions about the same span, split by article."""
    with failures("files that are in the folder by now are whole."), _reported() as report:
        from vleff.data.squad_stream import stream_articles
        from vleff.unanswerable.pair_files import save_pairs
        from vleff.unanswerable.pairs import pair_statistics, split_pairs

        paragraphs = [one for article in stream_articles(data, report) for one in article.paragraphs]
        splits = split_pairs(paragraphs, development, test, seed)
        paths = {name: output / f"{name}.jsonl" for name in splits}
        for path in paths.values():
            _refuse_existing(path)
        output.mkdir(parents=True, exist_ok=True)
        for name, some in splits.items():
            say(f"{name}: {pair_statistics(some) if some else 'no pairs'}")
            save_pairs(some, paths[name])


@app.command()
def train(
    data: Annotated[str, typer.Argument(help=PAIRS_HELP)],
    output: Annotated[Path, typer.Option(help="The folder to write; an interrupted call with the same one goes on.")],
    kind: Annotated[str, typer.Option(help="lstm (the paper's), transformer or seq2seq.")] = "lstm",
    model: Annotated[str | None, typer.Option(help=MODEL_HELP)] = None,
    held_out: Annotated[str | None, typer.Option(help="Pairs that must share no article.")] = None,
    epochs: Annotated[float, typer.Option(help="Passes over the pairs.")] = 15.0,
    swaps_of: Annotated[Path | None, typer.Option(help=SWAPS_OF_HELP)] = None,
    swap_epochs: Annotated[float, typer.Option(help="Passes over those.")] = 2.0,
    batch: Annotated[int, typer.Option(help="Pairs a step.")] = 32,
    learning_rate: Annotated[float | None, typer.Option(help="Of Adam; the kind's usual if left out.")] = None,
    width: Annotated[int, typer.Option(help="Of embeddings and memories; not of seq2seq.")] = 300,
    coverage: Annotated[float, typer.Option(help="Weight of the coverage loss; not of seq2seq.")] = 0.0,
    vocabulary: Annotated[int, typer.Option(help="Words at most; not of seq2seq.")] = 30_000,
    save_steps: Annotated[int, typer.Option(help="Steps between two checkpoints.")] = 500,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Train a generator on pairs of questions."""
    with failures(), _reported() as report:
        from vleff.data.squad import read_squad
        from vleff.unanswerable import recipes
        from vleff.unanswerable.pair_files import load_pairs
        from vleff.unanswerable.pairs import check_disjoint
        from vleff.unanswerable.swaps import swap_pairs
        from vleff.unanswerable.training import GeneratorTraining

        new = recipes.NewGenerator(kind, model, width, coverage, vocabulary)
        rate = new.learning_rate if learning_rate is None else learning_rate
        training = GeneratorTraining(epochs, batch, rate, save_steps=save_steps, seed=seed)
        chosen = load_pairs(data, report)
        easy = [] if swaps_of is None else swap_pairs(read_squad(swaps_of))
        if held_out is not None:
            kept = load_pairs(held_out, report)
            for name, some in ((data, chosen), (str(swaps_of), easy)):
                check_disjoint(some, kept, (name, held_out))
        recipes.train(chosen, output, new, training, easy_pairs=easy, easy_epochs=swap_epochs)
        say(f"The generator is in {output}; evaluate it: vleff unanswerable evaluate {output} PAIRS")


@app.command()
def generate(
    generator: Annotated[str, typer.Argument(help=GENERATOR_HELP)],
    question: Annotated[str, typer.Option(help="An answerable question.")],
    paragraph: Annotated[str, typer.Option(help="The paragraph that answers it.")],
    answer: Annotated[str, typer.Option(help="Its answer, a part of the paragraph.")],
    count: Annotated[int, typer.Option(help="How many to write at most.")] = 3,
    beams: Annotated[int, typer.Option(help=BEAMS_HELP)] = 5,
    sample: Annotated[bool, typer.Option("--sample", help=SAMPLE_HELP)] = False,
) -> None:
    """Write unanswerable questions from one answerable question."""
    with failures():
        from vleff.unanswerable.generation import GenerationSettings
        from vleff.unanswerable.generators import generator_recipe
        from vleff.unanswerable.sources import GenerationSource

        start = paragraph.find(answer) if answer else -1
        if start < 0:
            raise ValueError(f"answer: expected a part of the paragraph, got {answer!r}")
        source = GenerationSource(question, paragraph, answer, start)
        settings = GenerationSettings(beams=beams, sample=sample)
        (candidates,) = generator_recipe(generator, settings).load().generate([source], count=count)
        if not candidates:
            say("Nothing: the generator found no unanswerable question.")
        for candidate in candidates:
            say(f"{candidate.score:8.3f}  {candidate.text}")


@app.command()
def augment(
    generator: Annotated[str, typer.Argument(help=GENERATOR_HELP)],
    data: Annotated[Path, typer.Argument(help=SQUAD_HELP)],
    output: Annotated[Path, typer.Option(help=JOB_HELP)],
    reader: Annotated[str | None, typer.Option(help=f"Keeps what it finds unanswerable. {READER_HELP}")] = None,
    threshold: Annotated[float, typer.Option(help=THRESHOLD_HELP)] = 0.0,
    candidates: Annotated[int, typer.Option(help="To generate for each answerable question.")] = 1,
    kept: Annotated[int, typer.Option(help="Most that are kept of them.")] = 1,
    beams: Annotated[int, typer.Option(help=BEAMS_HELP)] = 5,
    sample: Annotated[bool, typer.Option("--sample", help=SAMPLE_HELP)] = False,
    seed: Annotated[int, typer.Option(help="Of draws.")] = 0,
    batch: Annotated[int, typer.Option(help="Questions at a time.")] = 32,
    max_length: Annotated[int, typer.Option(help="Tokens of a window of the reader.")] = 384,
    stride: Annotated[int, typer.Option(help="Tokens that windows share.")] = 128,
    workers: Annotated[int, typer.Option(help=WORKERS_HELP)] = 0,
    ray_actors: Annotated[int, typer.Option(help="Work by this many actors of a Ray cluster instead.")] = 0,
) -> None:
    """Add unanswerable questions to a SQuAD file, which becomes a SQuAD 2.0 file.

    On several machines: torchrun ... -m vleff.cli unanswerable augment ..., or --ray-actors.
    """
    with failures("what is finished is kept, and the same command goes on."), _reported() as report:
        from vleff.unanswerable.augmentation_processes import augment as augment_file
        from vleff.unanswerable.augmentation_processes import default_workers
        from vleff.unanswerable.augmenting import AugmentationSettings
        from vleff.unanswerable.generation import GenerationSettings
        from vleff.unanswerable.generators import generator_recipe

        settings = AugmentationSettings(candidates, kept, reader, threshold, max_length, stride, batch)
        recipe = generator_recipe(generator, GenerationSettings(beams=beams, sample=sample, seed=seed, batch=batch))
        if ray_actors:
            from vleff.unanswerable.ray_augmentation import augment_with_ray

            made = augment_with_ray(data, output, recipe, settings, report, ray_actors)
        else:
            made = augment_file(data, output, recipe, settings, report, workers or default_workers())
        if made is not None:
            say(f"{output / 'augmented.json'}: {made}")
            if made.left_out:
                say(f"What was left out is listed in {output / 'left-out.jsonl'}")


@app.command()
def evaluate(
    generator: Annotated[str, typer.Argument(help=GENERATOR_HELP)],
    data: Annotated[str, typer.Argument(help=PAIRS_HELP)],
    reader: Annotated[str | None, typer.Option(help=f"Says what is unanswerable. {READER_HELP}")] = None,
    threshold: Annotated[float, typer.Option(help=THRESHOLD_HELP)] = 0.0,
    examples: Annotated[int | None, typer.Option(help="Pairs to evaluate on; all if left out.")] = None,
    batch: Annotated[int, typer.Option(help="Questions at a time.")] = 32,
    seed: Annotated[int, typer.Option(help="Of the choice of pairs.")] = 0,
    output: Annotated[Path | None, typer.Option(help="A JSON file to write the scores to.")] = None,
) -> None:
    """Compare a generator with people, with copying the input, and with swaps."""
    with failures("nothing was written."), _reported() as report:
        from vleff.data.splits import sample
        from vleff.unanswerable.answerability import AnswerabilityReader
        from vleff.unanswerable.evaluation import evaluate as score
        from vleff.unanswerable.generators import SWAP, generator_recipe
        from vleff.unanswerable.pair_files import load_pairs

        if output is not None:
            _refuse_existing(output)
        recipe = generator_recipe(generator)
        chosen = load_pairs(data, report)
        if examples is not None:
            chosen = sample(chosen, examples, seed)
        judge = None if reader is None else AnswerabilityReader.from_pretrained(reader, batch=batch)
        generators = {} if generator == SWAP else {recipe.name: recipe.load()}
        scores = score(generators, chosen, judge, threshold, batch)
        _print_scores(scores, f"{len(chosen)} pairs")
        if output is not None:
            from vleff.training.checkpoints import replace_file

            text = json.dumps({name: asdict(one) for name, one in scores.items()}, indent=1) + "\n"
            replace_file(output, lambda part: part.write_text(text))
        say("Where a generator finds nothing (missing), the input is copied.")


def _print_scores(scores: dict[str, Any], title: str) -> None:
    from vleff.unanswerable.evaluation import HEADINGS

    names = [name for name in HEADINGS if all(getattr(one, name) is not None for one in scores.values())]
    table = Table("", title=title, title_justify="left", box=None, pad_edge=False)
    for name in names:
        table.add_column(HEADINGS[name], justify="right")
    for row, one in scores.items():
        table.add_row(escape(row), *(f"{getattr(one, name):.1f}" for name in names))
    console.print(table)


def _refuse_existing(path: Path) -> None:
    if path.exists():
        raise FileExistsError(f"{path} exists already")


@contextmanager
def _reported() -> Iterator[Any]:
    """Prints the first malformed records as they come, and in the end how many there were."""
    count = 0

    def report(record: object) -> None:
        nonlocal count
        count += 1
        if count <= _SHOWN:
            errors.print(f"[yellow]Left out:[/] {escape(str(record))}", highlight=False, soft_wrap=True)

    yield report
    if count > _SHOWN:
        errors.print(f"[yellow]Left out:[/] {count} malformed records in all", highlight=False)
