"""Figures of what was kept and of what it cost, as PNG files. They need matplotlib."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from vleff.smarttrim.evaluation import FULL, RANDOM, TRIMMED, Evaluation, margin
from vleff.smarttrim.shown import ShownQuestion

INK, MUTED, GRID = "#1d2433", "#6b7280", "#e5e7eb"
COLORS = {FULL: "#6b7280", TRIMMED: "#d1495b", RANDOM: "#3d7ea6"}
LABELS = {FULL: "full", TRIMMED: "trimmed by SmartTrim", RANDOM: "trimmed at random"}
_DROPPED = 0.13  # how much of a dropped patch shows through
_MOST_LAYERS = 6
_STYLE: Any = {
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
}


def with_dropped_hidden(image: np.ndarray, patch: int, kept: np.ndarray, background: int = 255) -> np.ndarray:
    """The image with its dropped patches almost gone.

    Args:
        image: uint8 [height, width, 3].
        patch: edge of a patch in pixels.
        kept: bool [rows, columns].
        background: what dropped patches fade to.

    Returns:
        uint8 [height, width, 3].
    """
    mask = np.kron(kept, np.ones((patch, patch)))[: image.shape[0], : image.shape[1], None]
    faded = background + _DROPPED * (image.astype(float) - background)
    return np.where(mask > 0, image, faded).round().astype(np.uint8)


def shown_layers(count: int) -> list[int]:
    """Up to six numbers of layers, evenly spaced, the first and the last among them."""
    return sorted({round(place) for place in np.linspace(0, count - 1, min(count, _MOST_LAYERS))})


def draw_kept_patches(shown: Sequence[ShownQuestion], path: Path) -> None:
    """A row for each question: its image, and the patches that layers work on.

    Raises:
        ImportError: matplotlib is not installed.
    """
    layers = shown_layers(len(shown[0].kept.patches))
    with _canvas(1.75 * (len(layers) + 1), 2.35 * len(shown), path) as figure:
        rows = np.atleast_1d(figure.subfigures(len(shown), 1, hspace=0.0))
        for row, one in zip(rows, shown, strict=True):
            row.suptitle(_caption(one), x=0.012, ha="left", fontsize=10, fontweight="bold", color=INK)
            axes = row.subplots(1, len(layers) + 1)
            _show(axes[0], one.image, "what it sees")
            for axis, layer in zip(axes[1:], layers, strict=True):
                patches, text, heads = one.kept.patches[layer], one.kept.text[layer], one.kept.heads[layer]
                hidden = with_dropped_hidden(one.image, one.patch, patches)
                words = f"{text.sum()}/{text.size} words · {heads.sum()}/{heads.size} heads"
                _show(axis, hidden, f"layer {layer}: {patches.sum()}/{patches.size} patches\n{words}")
                _outline(axis, patches, one.patch)


def draw_distribution(evaluation: Evaluation, path: Path) -> None:
    """How many tokens and heads the layers work on, over all questions: means, and how far questions differ.

    Raises:
        ImportError: matplotlib is not installed.
    """
    panels = [("tokens", name, counts) for name, counts in evaluation.tokens.items()]
    panels += [("heads", name, counts) for name, counts in evaluation.heads.items()]
    with _canvas(0.6 + 4.6 * len(panels), 3.9, path) as figure:
        axes = np.atleast_1d(figure.subplots(1, len(panels)))
        single = len(panels) == 2
        for axis, (what, name, layers) in zip(axes, panels, strict=True):
            counts = [np.asarray(layer) for layer in layers]
            places = np.arange(len(counts))
            title = what if single else f"{what}: {name}"
            if what == "tokens":
                whole = evaluation.initial[name]
                _violins(axis, counts, places)
                axis.axhline(whole, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
                axis.text(
                    places[-1] + 0.45, whole, f"all {whole:.0f}", ha="right", va="bottom", color=MUTED, fontsize=8
                )
                axis.set(ylim=(0, 1.08 * max(whole, max(float(one.max()) for one in counts))))
                axis.set_ylabel("tokens of a question and its image")
            else:
                whole_heads = evaluation.all_heads[name]
                _squares(axis, counts, places, whole_heads)
                axis.set_ylabel(f"heads, of {whole_heads}")
            axis.set_title(f"{title} kept", loc="left", fontsize=11, fontweight="bold")
            axis.set(xlabel="layer", xticks=places, xlim=(-0.6, len(counts) - 0.4))


def draw_curve(points: Mapping[str, Sequence[tuple[float, float, int]]], speed_label: str, path: Path) -> None:
    """Accuracy against speed, of trimming and of random trimming.

    Args:
        points: for "full", "trimmed" and "random" each evaluation's (speed, accuracy in percent, number of questions).
        speed_label: what the speed is.

    Raises:
        ImportError: matplotlib is not installed.
    """
    with _canvas(6.4, 4.2, path) as figure:
        axis = figure.subplots()
        axis.grid(color=GRID, linewidth=0.8)
        axis.set_axisbelow(True)
        full = float(np.mean([point[1] for point in points[FULL]]))
        axis.axhline(full, color=COLORS[FULL], linewidth=1, linestyle=(0, (4, 3)))
        for arm in (RANDOM, TRIMMED):
            own = sorted(points[arm])
            speeds, accuracies = [point[0] for point in own], [point[1] for point in own]
            bars = [margin(accuracy, count) for _, accuracy, count in own]
            axis.plot([1.0, *speeds], [full, *accuracies], "-", color=COLORS[arm], linewidth=1.8)
            axis.errorbar(speeds, accuracies, bars, fmt="o", color=COLORS[arm], markersize=6, elinewidth=0.9, capsize=3)
            end = int(np.argmax(speeds))
            below = arm == RANDOM
            axis.annotate(
                f"{LABELS[arm]}\n{accuracies[end]:.1f} % at {speeds[end]:.2f}×",  # noqa: RUF001
                (speeds[end], accuracies[end]),
                (9, -4 if below else 4),
                textcoords="offset points",
                va="top" if below else "bottom",
                color=COLORS[arm],
                fontweight="bold",
            )
        axis.plot([1.0], [full], "o", color=COLORS[FULL], markersize=7)
        axis.annotate(f"full {full:.1f} %", (1.0, full), (6, 6), textcoords="offset points", color=COLORS[FULL])
        low, high = axis.get_xlim()
        axis.set_xlim(low, high + 0.42 * (high - low))
        axis.set(xlabel=speed_label, ylabel="accuracy, %")
        axis.set_title("accuracy against speed", loc="left", fontsize=11, fontweight="bold")


def _caption(one: ShownQuestion) -> str:
    parts = [f"“{one.question}”  →  {one.answer}"]
    if one.right is not None:
        parts.append("✓" if one.answer == one.right else f"✗ ({one.right})")
    if one.full_answer != one.answer:
        parts.append(f"at full capacity: {one.full_answer}")
    return "  ".join(parts)


def _violins(axis: Any, counts: Sequence[np.ndarray], places: np.ndarray) -> None:
    varied = [(place, one) for place, one in zip(places, counts, strict=True) if np.ptp(one) > 0]
    if varied:
        parts = axis.violinplot(
            [one for _, one in varied], [place for place, _ in varied], widths=0.8, showextrema=False
        )
        for body in parts["bodies"]:
            body.set(facecolor=COLORS[TRIMMED], edgecolor="none", alpha=0.35)
    for place, one in zip(places, counts, strict=True):
        low, middle, high = np.percentile(one, (5, 50, 95))
        axis.plot([place, place], [low, high], color=COLORS[TRIMMED], linewidth=1.6, solid_capstyle="round")
        axis.plot([place], [middle], "o", color="white", markeredgecolor=COLORS[TRIMMED], markeredgewidth=1.6)
        axis.annotate(
            f"{one.mean():.0f}", (place, middle), (8, 0), textcoords="offset points", va="center", fontsize=8, color=INK
        )


def _squares(axis: Any, counts: Sequence[np.ndarray], places: np.ndarray, whole: int) -> None:
    """A square for each layer and number of heads, as dark as it is frequent."""
    shares = np.array([np.bincount(one.astype(int), minlength=whole + 1) / len(one) for one in counts]).T
    axis.imshow(
        np.ma.masked_equal(shares, 0),
        origin="lower",
        aspect="auto",
        cmap="Reds",
        vmin=0,
        vmax=1,
        extent=(-0.5, len(counts) - 0.5, -0.5, whole + 0.5),
    )
    for place, column in zip(places, shares.T, strict=True):
        for number, share in enumerate(column):
            if share >= 0.05:
                color = "white" if share > 0.55 else INK
                axis.text(place, number, f"{100 * share:.0f} %", ha="center", va="center", fontsize=7.5, color=color)
    axis.set(ylim=(0.5, whole + 0.5), yticks=range(1, whole + 1))


def _show(axis: Any, image: np.ndarray, title: str) -> None:
    axis.imshow(image, interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set(visible=True, color=GRID)
    axis.set_title(title, fontsize=7.5, color=MUTED, pad=3, linespacing=1.25)


def _outline(axis: Any, kept: np.ndarray, patch: int) -> None:
    """A line around each area of kept patches."""
    padded = np.pad(kept, 1).astype(int)
    style = {"color": COLORS[TRIMMED], "linewidth": 0.9, "solid_capstyle": "butt"}
    for row, column in zip(*np.nonzero(np.diff(padded, axis=0)), strict=True):
        axis.plot([(column - 1) * patch - 0.5, column * patch - 0.5], [row * patch - 0.5] * 2, **style)
    for row, column in zip(*np.nonzero(np.diff(padded, axis=1)), strict=True):
        axis.plot([column * patch - 0.5] * 2, [(row - 1) * patch - 0.5, row * patch - 0.5], **style)


@contextmanager
def _canvas(width: float, height: float, path: Path) -> Iterator[Any]:
    """A figure that is saved in the end."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
        yield figure
        figure.savefig(path, dpi=150)
