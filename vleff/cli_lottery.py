"""The command `vleff lottery`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from vleff.terminal import failures, say

app = typer.Typer(help="Subnetworks of readers: found on one domain, tuned on another.", no_args_is_help=True)

MODEL_HELP = "A transformers checkpoint: a folder, or a name on the Hugging Face hub."
DATA_HELP = "A SQuAD file (.json, .json.gz), or the name of a data set with such columns on the hub."
FOUND_HELP = "The folder that `vleff lottery find` made."
OUTPUT_HELP = "The folder to write; an interrupted call with the same one goes on."
READER_HELP = "A tuned subnetwork, the folder of `vleff lottery find`, or any checkpoint."


@app.command()
def find(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    data: Annotated[str, typer.Argument(help=DATA_HELP)],
    output: Annotated[Path, typer.Option(help=OUTPUT_HELP)],
    sparsity: Annotated[float, typer.Option(help="Share of weights to prune.")] = 0.7,
    ranking: Annotated[str, typer.Option(help="global or matrix: what weights are compared with.")] = "global",
    strength: Annotated[float, typer.Option(help="How much heads count; 0 leaves attribution out.")] = 1.0,
    source_epochs: Annotated[float, typer.Option(help="Passes over the data before pruning.")] = 2.0,
    pruning_epochs: Annotated[float, typer.Option(help="Passes while pruning.")] = 2.0,
    batch: Annotated[int, typer.Option(help="Windows a step.")] = 16,
    learning_rate: Annotated[float, typer.Option(help="The highest.")] = 3e-5,
    max_length: Annotated[int, typer.Option(help="Tokens of a window.")] = 384,
    stride: Annotated[int, typer.Option(help="Tokens that windows share.")] = 128,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Train a reader on a source domain, score its heads and prune it."""
    with failures():
        from vleff.lottery import reading

        settings = reading.ReadingSettings(
            sparsity=sparsity,
            ranking=ranking,
            strength=strength,
            source_epochs=source_epochs,
            pruning_epochs=pruning_epochs,
            batch=batch,
            learning_rate=learning_rate,
            max_length=max_length,
            stride=stride,
            seed=seed,
        )
        reading.find(model, _paragraphs(data), output, settings)
        say(f"The subnetwork is in {output}; tune it: vleff lottery tune {output} DATA --output FOLDER")


@app.command()
def tune(
    found: Annotated[Path, typer.Argument(help=FOUND_HELP)],
    data: Annotated[str, typer.Argument(help=DATA_HELP)],
    output: Annotated[Path, typer.Option(help=OUTPUT_HELP)],
    examples: Annotated[int | None, typer.Option(help="Questions to tune on; all if left out.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps; ten passes, at least 100, if left out.")] = None,
    remainder: Annotated[str, typer.Option(help="zero (sparse, fast) or frozen (dense).")] = "zero",
    batch: Annotated[int, typer.Option(help="Windows a step.")] = 16,
    learning_rate: Annotated[float, typer.Option(help="The highest.")] = 3e-5,
    max_length: Annotated[int, typer.Option(help="Tokens of a window.")] = 384,
    stride: Annotated[int, typer.Option(help="Tokens that windows share.")] = 128,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Tune the subnetwork on a target domain."""
    with failures():
        from vleff.data.splits import answerable, sample
        from vleff.lottery import reading

        settings = reading.ReadingSettings(
            batch=batch, learning_rate=learning_rate, max_length=max_length, stride=stride, seed=seed
        )
        chosen = answerable(_examples(data))
        if examples is not None:
            chosen = sample(chosen, examples, seed)
        reading.tune(found, chosen, output, settings, steps, remainder)
        say(f"The tuned subnetwork is in {output}; evaluate it: vleff lottery evaluate {output} DATA")


@app.command()
def evaluate(
    reader: Annotated[str, typer.Argument(help=READER_HELP)],
    data: Annotated[str, typer.Argument(help=DATA_HELP)],
    examples: Annotated[int | None, typer.Option(help="Questions to answer; all if left out.")] = None,
    max_length: Annotated[int, typer.Option(help="Tokens of a window.")] = 384,
    stride: Annotated[int, typer.Option(help="Tokens that windows share.")] = 128,
    seed: Annotated[int, typer.Option(help="Of the choice of questions.")] = 0,
) -> None:
    """Print exact match and F1 of a reader, with the 95 % interval of F1."""
    with failures():
        from vleff.data.splits import sample
        from vleff.lottery import reading

        chosen = _examples(data)
        if examples is not None:
            chosen = sample(chosen, examples, seed)
        settings = reading.ReadingSettings(max_length=max_length, stride=stride)
        say(str(reading.evaluate(*reading.load_reader(reader), chosen, settings)))


@app.command()
def export(
    subnetwork: Annotated[Path, typer.Argument(help="A tuned subnetwork.")],
    output: Annotated[Path, typer.Argument(help="The folder to write.")],
) -> None:
    """Write a subnetwork as an ordinary dense checkpoint, which plain transformers loads."""
    with failures():
        from transformers import AutoTokenizer

        from vleff.lottery import from_pretrained, to_dense

        if output.exists():
            raise FileExistsError(f"{output} exists already")
        to_dense(from_pretrained(subnetwork)).save_pretrained(output)
        AutoTokenizer.from_pretrained(subnetwork).save_pretrained(output)
        say(f"Wrote {output}")


def _paragraphs(data: str) -> Any:
    from vleff.data.squad import load_squad

    return load_squad(data)


def _examples(data: str) -> Any:
    from vleff.data.span_features import span_examples

    return span_examples(_paragraphs(data))
