"""`vleff bench --stack`: SmartTrim, lottery subnetworks and DiDE, each alone and together, on a ViLT that answers."""

import copy
import gc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from transformers import ViltConfig, ViltForQuestionAnswering

import vleff
from vleff import lottery, smarttrim
from vleff.bench import engines, report, stack_report
from vleff.bench.inputs import Samples
from vleff.bench.models import LoadedModel, load_model, samples_for
from vleff.bench.results import ResultFile, machine, now
from vleff.bench.run import DTYPES, Settings
from vleff.bench.stack_results import EAGER, FLOP_RATIO, REFERENCE, ZEROS, StackCell, StackResults, subsets
from vleff.bench.timing import MINIMUM_ROUNDS, measure_rounds
from vleff.bench.trimming_plans import everything_kept, follow, measured_shares
from vleff.dide import DualEncoder

ANSWERS = 3129  # of VQA v2
Inputs = Mapping[str, Tensor]


@dataclass(frozen=True)
class Contender:
    """What answers one batch.

    Attributes:
        answer: makes the logits.
        flop_ratio: what trimmers leave; None without any.
    """

    answer: Callable[[], Tensor]
    flop_ratio: float | None = None


def combined(fusion: ViltForQuestionAnswering, methods: tuple[str, ...], inputs: Inputs) -> Contender:
    """A copy of a model with some of the methods, and a batch for it.

    With "DiDE" the photos' representations are computed here, as they are once for a gallery. Which weights a lottery
    subnetwork keeps, and which tokens are trimmed, is chance (`trimming_plans`).

    Raises:
        ValueError: its logits differ from those of plain torch on the same weights, or, with trimmers, from those of
            the same model that computes all tokens and hides what is dropped.
    """
    torch.manual_seed(0)
    model: Any = copy.deepcopy(fusion)
    if "DiDE" in methods:
        model = DualEncoder.from_fusion(model, "vqa").eval().to(fusion.dtype)
    if "lottery" in methods:
        linears = lottery.prunable_linears(model)
        lottery.extract(model, {name: torch.rand(linear.weight.shape) >= ZEROS for name, linear in linears.items()})
    if "SmartTrim" not in methods:
        expected = logits(lottery.to_dense(model), inputs)
        vleff.accelerate(model)
        _check(logits(model, inputs), expected)
        return Contender(_answer(model, methods, inputs))
    smarttrim.attach(model)
    runs = everything_kept(model, inputs)
    shares = measured_shares(model, runs, FLOP_RATIO)
    ratio = follow(model, runs, shares, lambda: (logits(model, inputs),))
    return Contender(_answer(model, methods, inputs), ratio)


def logits(model: nn.Module, inputs: Inputs) -> Tensor:
    """The logits of a batch; ViLT shuffles patches, always alike here."""
    torch.manual_seed(0)
    with torch.inference_mode():
        return model(**inputs).logits


def _answer(model: Any, methods: tuple[str, ...], inputs: Inputs) -> Callable[[], Tensor]:
    if "DiDE" not in methods:
        return partial(logits, model, inputs)
    text = {name: value for name, value in inputs.items() if not name.startswith("pixel_")}
    with torch.inference_mode():
        photos = model.encode_image(**{name: value for name, value in inputs.items() if name.startswith("pixel_")})

    def by_parts() -> Tensor:
        with torch.inference_mode():
            return model.score(model.encode_text(**text), photos)

    _check(by_parts(), logits(model, inputs))
    return by_parts


def _check(actual: Tensor, expected: Tensor) -> None:
    tolerance = 1e-5 if expected.dtype == torch.float32 else 0.05
    difference = float((actual - expected).abs().max() / expected.abs().max())
    if not difference <= tolerance:
        raise ValueError(f"outputs differ by {difference:.1e}")


def answering_model(name: str, seed: int) -> LoadedModel:
    """A ViLT that answers questions: of the published size with random weights, or a checkpoint.

    Raises:
        ValueError: `name` is no ViLT.
    """
    loaded = load_model(name, seed)
    if loaded.model.config.model_type != "vilt":
        raise ValueError(f"model: expected vilt or a ViLT checkpoint to stack methods on, got {name!r}")
    if name == "vilt":
        torch.manual_seed(seed)
        model = ViltForQuestionAnswering(ViltConfig.from_dict({"num_labels": ANSWERS}))
    else:
        model = ViltForQuestionAnswering.from_pretrained(name, dtype=torch.float32)
    return LoadedModel(name, model.eval(), loaded.weights)


def run(settings: Settings, console: Console) -> StackResults:
    """Measures, prints the table and writes the JSON file and the figure.

    Interrupting it (KeyboardInterrupt) keeps what was measured so far; `complete` is then False.

    Raises:
        ValueError, ImportError: the model or the data cannot be read, or outputs differ.
        OSError: the output folder cannot be written to.
    """
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    loaded = answering_model(settings.model, settings.seed)
    samples = samples_for(loaded, settings.data, settings.photos, settings.seed, settings.images or "square")
    about = loaded.weights, samples.description, settings.command
    results = StackResults(f"{loaded.name}-stack", *about, date=now(), machine=machine())
    file = ResultFile(settings.output, results)
    report.print_header(results, console)
    try:
        with report.progress(console) as progress:
            cells = [(dtype, batch) for dtype in settings.dtypes for batch in settings.batches]
            show = partial(progress.update, progress.add_task("preparing", total=len(cells) * MINIMUM_ROUNDS))
            for dtype, batch in cells:
                for _ in _measure(settings, loaded, samples, dtype, batch, results, show):
                    file.write(results)
                gc.collect()
        results.complete = True
    except KeyboardInterrupt:
        console.print("\nInterrupted: this is what was measured so far.")
    finally:
        results.cells = [cell for cell in results.cells if cell.rounds]
        if results.cells:
            file.write(results)
            stack_report.finish(results, file.path, console)
        else:
            file.discard()
            console.print("Nothing was measured, so nothing was written.")
    return results


def _measure(
    settings: Settings,
    loaded: LoadedModel,
    samples: Samples,
    dtype: str,
    batch: int,
    results: StackResults,
    show: Callable[..., None],
) -> Iterator[StackCell]:
    """Measures one cell; yields it after every round."""
    plain: Any = copy.deepcopy(loaded.model)
    plain.to(DTYPES[dtype])
    given = samples.batches(batch, at_least=batch)[0].inputs
    inputs = {name: value.to(plain.dtype) if value.is_floating_point() else value for name, value in given.items()}
    cell = StackCell(dtype, batch)
    contenders: dict[str, Callable[[], object]] = {REFERENCE: partial(logits, loaded.model, given)}
    if dtype != "fp32":
        contenders[EAGER] = partial(logits, plain, inputs)
    for name in settings.against:
        show(description=f"{dtype}, batch {batch}: preparing {name}")
        try:
            engine = engines.OTHERS[name](plain, inputs)
            engine(inputs)
        except Exception as error:
            results.unavailable[f"{name} ({dtype}, batch {batch})"] = engines.reason(error)
        else:
            contenders[name] = partial(engine, inputs)
    for name, methods in subsets().items():
        show(description=f"{dtype}, batch {batch}: preparing {name}")
        contender = combined(plain, methods, inputs)
        contenders[name] = contender.answer
        if contender.flop_ratio is not None:
            cell.flop_ratios[name] = contender.flop_ratio
    for answer in contenders.values():
        answer()
    cell.times = {name: [] for name in contenders}
    results.cells.append(cell)
    for times in measure_rounds(contenders, settings.budget):
        for name, seconds in times.items():
            cell.times[name].append(seconds)
        show(description=f"{dtype}, batch {batch}: round {cell.rounds}", advance=int(cell.rounds <= MINIMUM_ROUNDS))
        yield cell
