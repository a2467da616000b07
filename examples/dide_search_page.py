"""A page that searches a gallery by text: a dual encoder over stored representations.

    pip install 'vleff[search]'
    vleff dide encode MODEL IMAGES --store STORE
    python examples/dide_search_page.py MODEL STORE IMAGES

MODEL was made for retrieval by `vleff dide train`, IMAGES is the folder that was encoded. When a question comes, only
its text is encoded; no image is read but those that are shown.
"""

import argparse
import time
from pathlib import Path

import gradio

from vleff.dide import Gallery

MOST_SHOWN = 48


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("store", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--port", type=int, default=7860)
    arguments = parser.parse_args()
    images = arguments.images.resolve()
    page(Gallery.open(arguments.model, arguments.store), images).launch(
        server_name="127.0.0.1", server_port=arguments.port, allowed_paths=[str(images)]
    )


def page(gallery: Gallery, images: Path) -> gradio.Blocks:
    """The page; it shows what fits the text best, with scores, and how long the search took."""

    def answer(text: str, count: float) -> tuple[list[tuple[str, str]], str]:
        if not text.strip():
            return [], "Describe what you are looking for."
        start = time.perf_counter()
        (found,) = gallery.search([text], int(count))
        milliseconds = 1e3 * (time.perf_counter() - start)
        shown = [
            (str(images / name), f"{score:.2f} {Path(name).stem}")
            for name, score in zip(found.ids, found.scores, strict=True)
        ]
        return shown, f"{len(shown)} of {len(gallery.store):,} images in {milliseconds:.1f} ms"

    with gradio.Blocks(title="vleff image search") as blocks:
        gradio.Markdown("# Image search")
        with gradio.Row():
            text = gradio.Textbox(label="Description", placeholder="a cat with a smile", scale=4, autofocus=True)
            count = gradio.Slider(1, MOST_SHOWN, 12, step=1, label="Images", scale=1)
            button = gradio.Button("Search", variant="primary", scale=1)
        status = gradio.Markdown("Describe what you are looking for.")
        shown = gradio.Gallery(label="Found", columns=6, object_fit="contain", height="auto")
        gradio.on([text.submit, button.click], answer, [text, count], [shown, status])
    return blocks


if __name__ == "__main__":
    main()
