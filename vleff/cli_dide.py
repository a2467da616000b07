"""The command `vleff dide`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from vleff.terminal import console, failures, say

app = typer.Typer(help="Dual encoders that a fusion encoder taught, and galleries.", no_args_is_help=True)

TEACHER_HELP = "ViLT, fine-tuned for the task: a folder, or a name on the Hugging Face hub."
DATA_HELP = 'JSON Lines, {"text": ..., "image": path or [path, path], "label": ...} a line, or a data set of the hub.'
STUDENT_HELP = "The checkpoint that both towers begin with; the teacher's if left out."
OUTPUT_HELP = "The folder to write; an interrupted call with the same one goes on."
MODEL_HELP = "A dual encoder that `vleff dide train` made."
GALLERY_HELP = "A folder of images; a text file, a text a line, with --modality text."
STORE_HELP = "The folder of the representation store; what it has is not encoded again."
TASK_HELP = "vqa, nlvr2, snli-ve or retrieval."


@app.command()
def train(
    teacher: Annotated[str, typer.Argument(help=TEACHER_HELP)],
    data: Annotated[str, typer.Argument(help=DATA_HELP)],
    task: Annotated[str, typer.Option(help=TASK_HELP)],
    output: Annotated[Path, typer.Option(help=OUTPUT_HELP)],
    student: Annotated[str | None, typer.Option(help=STUDENT_HELP)] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the data; the paper's if left out.")] = None,
    batch: Annotated[int | None, typer.Option(help="Examples a step; the paper's if left out.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="The highest; the paper's if left out.")] = None,
    soft_weight: Annotated[float, typer.Option(help="Of the teacher's answers.")] = 1.0,
    attention_weight: Annotated[float, typer.Option(help="Of its cross-modal attention.")] = 1.0,
    hard_label_weight: Annotated[float, typer.Option(help="Of the labels in the data.")] = 0.0,
    max_length: Annotated[int, typer.Option(help="Of texts, in tokens.")] = 40,
    save_steps: Annotated[int, typer.Option(help="Steps between two checkpoints.")] = 500,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Teach a dual encoder what a fusion encoder knows."""
    with failures():
        from vleff.dide import recipes
        from vleff.dide.config import TASKS
        from vleff.dide.examples import read_examples

        if task not in TASKS:
            raise ValueError(f"task: expected one of {', '.join(TASKS)}, got {task!r}")
        settings = recipes.TrainingSettings(
            task=task,
            epochs=epochs,
            batch=batch,
            learning_rate=learning_rate,
            soft_weight=soft_weight,
            attention_weight=attention_weight,
            hard_label_weight=hard_label_weight,
            max_length=max_length,
            save_steps=save_steps,
            seed=seed,
        )
        recipes.train(teacher, read_examples(data), output, settings, student)
        say(f"The dual encoder is in {output}; encode a gallery: vleff dide encode {output} IMAGES --store FOLDER")


@app.command()
def encode(
    model: Annotated[Path, typer.Argument(help=MODEL_HELP)],
    gallery: Annotated[Path, typer.Argument(help=GALLERY_HELP)],
    store: Annotated[Path, typer.Option(help=STORE_HELP)],
    modality: Annotated[str, typer.Option(help="image or text.")] = "image",
    dtype: Annotated[str, typer.Option(help="float16 or float32, of a new store.")] = "float16",
    batch: Annotated[int, typer.Option(help="Items at a time.")] = 32,
    workers: Annotated[int, typer.Option(help="Processes that load images meanwhile.")] = 0,
    ray_actors: Annotated[int, typer.Option(help="Encode by this many actors of a Ray cluster.")] = 0,
) -> None:
    """Encode a gallery once. Several processes: torchrun --nproc-per-node N -m vleff.cli dide encode ..."""
    with failures("what was encoded is kept, and the same command goes on."):
        import vleff
        from vleff.dide.dual_encoder import DualEncoder
        from vleff.dide.encoding import encode as encode_items
        from vleff.dide.encoding import image_files
        from vleff.dide.preprocessing import Preprocessor

        if modality == "text":
            texts = gallery.read_text(encoding="utf-8").splitlines()
            items = [(text, text) for text in dict.fromkeys(texts) if text.strip()]
        else:
            items = image_files(gallery)
        if ray_actors:
            from vleff.dide.ray_encoding import encode_with_ray

            made = encode_with_ray(model, items, store, modality, dtype, batch, ray_actors)
        else:
            loaded = vleff.accelerate(DualEncoder.from_pretrained(model).eval())
            preprocessor = Preprocessor.from_pretrained(model)
            made = encode_items(loaded, preprocessor, items, store, modality, dtype, batch, workers)
        say(f"{store} holds {len(made)} representations")


@app.command()
def search(
    model: Annotated[Path, typer.Argument(help=MODEL_HELP)],
    store: Annotated[Path, typer.Argument(help="A store of images that `vleff dide encode` filled.")],
    text: Annotated[list[str], typer.Argument(help="What to look for.")],
    k: Annotated[int, typer.Option(help="How many images.")] = 10,
) -> None:
    """List the images that fit a text best."""
    with failures():
        from vleff.dide.gallery import Gallery

        opened = Gallery.open(model, store)
        for query, found in zip(text, opened.search(text, k), strict=True):
            table = Table("score", "image", title=escape(query), title_justify="left", box=None)
            for name, score in zip(found.ids, found.scores, strict=True):
                table.add_row(f"{score:.3f}", escape(name))
            console.print(table)


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(help=MODEL_HELP)],
    data: Annotated[str, typer.Argument(help=DATA_HELP)],
    batch: Annotated[int, typer.Option(help="Examples at a time.")] = 32,
) -> None:
    """Print the accuracy of a dual encoder; of retrieval, recalls over all examples."""
    with failures():
        import vleff
        from vleff.dide import recipes
        from vleff.dide.dual_encoder import DualEncoder
        from vleff.dide.examples import read_examples
        from vleff.dide.preprocessing import Preprocessor

        loaded = vleff.accelerate(DualEncoder.from_pretrained(model).eval())
        preprocessor = Preprocessor.from_pretrained(model)
        say(str(recipes.evaluate(loaded, preprocessor, read_examples(data), batch)))
