"""ViLT's image embeddings: patches in random order, with positions interpolated to each image's size.

transformers interpolates image by image to sizes that the mask decides, which torch.compile cannot follow.
Here one opaque op draws the patches, and everything differentiable is gathered by its numbers.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.vilt.modeling_vilt import ViltEmbeddings


@contextmanager
def recorded_places(model: nn.Module, hide: Callable[[Tensor], Tensor] | None = None) -> Iterator[list[Tensor]]:
    """Within it, the places of the patches of each forward are appended to the list it gives.

    They are int64 [batch, patches, 2], row and column of each patch, in the order in which ViLT drew them.

    Args:
        model: a ViLT with any head, accelerated or not.
        hide: hide(places), bool [batch, patches], says which patches the model is not to see.

    Raises:
        TypeError: the model has no ViLT embeddings.
    """
    found = [module for module in model.modules() if isinstance(module, ViltEmbeddings)]
    if len(found) != 1:
        raise TypeError(f"model: expected one with ViltEmbeddings, got {type(model).__name__}")
    embeddings: Any = found[0]
    embed, places = embeddings.visual_embed, []

    def watched(*arguments: Any, **options: Any) -> Any:
        tokens, mask, (drawn, size) = embed(*arguments, **options)
        places.append(drawn)
        if hide is not None:
            mask = mask * functional.pad(~hide(drawn), (1, 0), value=True)
        return tokens, mask, (drawn, size)

    embeddings.visual_embed = watched
    try:
        yield places
    finally:
        del embeddings.visual_embed


@torch.library.custom_op("vleff::draw_patches", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def _draw_patches(patch_mask: Tensor, max_patches: int) -> Tensor:
    """The numbers of the patches of each image, in the order that ViltEmbeddings.visual_embed would draw.

    Args:
        patch_mask: int64 [batch, rows, columns], 1 at the patches of an image, 0 at its padding.
        max_patches: more are left out, at random; below 0 for no limit.

    Returns:
        int64 [batch, patches], patches = the most that an image has, padding drawn where it has fewer.
    """
    mask = patch_mask.cpu()  # at once: the number of each image's patches decides what is drawn
    patches = int((mask[:, :, 0].sum(1) * mask[:, 0].sum(1)).max())
    if max_patches >= 0:
        patches = min(patches, max_patches)
    drawn = []
    for image in mask.flatten(1):
        valid, padding = (image != 0).nonzero()[:, 0], (image == 0).nonzero()[:, 0]
        missing = patches - len(valid)
        if missing <= 0:
            drawn.append(valid[torch.multinomial(torch.ones(len(valid)), patches)])
        else:
            chosen = torch.multinomial(torch.ones(len(padding)), missing, replacement=True)
            drawn.append(torch.cat([valid, padding[chosen]]))
    return torch.stack(drawn).to(patch_mask.device)


@_draw_patches.register_fake
def _(patch_mask: Tensor, max_patches: int) -> Tensor:
    patches = torch.library.get_ctx().new_dynamic_size(min=0)
    return patch_mask.new_empty(patch_mask.shape[0], patches)


def draw_patches(pixel_mask: Tensor, patch_size: int, max_patches: int) -> Tensor:
    """Which patches `ViltEmbeddings.visual_embed` would take next, in its random order, under the same seed.

    Args:
        pixel_mask: [batch, height, width], 1 within each image, which starts at the top left.
        patch_size: edge of a patch in pixels.
        max_patches: of an image, as in `config.max_image_length`; below 0 for no limit.

    Returns:
        int64 [batch, patches], numbers of patches, counted row by row; patches = the most that an image has. One
        with fewer gets some of its padding.
    """
    return _draw_patches(_patch_mask(pixel_mask, patch_size), max_patches)


def all_patches(pixel_mask: Tensor, patch_size: int) -> Tensor:
    """All patches in order, as `draw_patches` returns them; the padding of smaller images comes last."""
    mask = _patch_mask(pixel_mask, patch_size).flatten(1)
    return mask.argsort(dim=1, descending=True, stable=True)[:, : int(mask.sum(1).max())]


def embed_patches(
    embeddings: Any, pixel_values: Tensor, pixel_mask: Tensor, patches: Tensor
) -> tuple[Tensor, Tensor, tuple[Tensor, tuple[int, int]]]:
    """What `ViltEmbeddings.visual_embed` returns, for given patches.

    Args:
        embeddings: the ViltEmbeddings, of width d, or others with the same parts for images.
        pixel_values: [batch, channels, height, width].
        pixel_mask: [batch, height, width], 1 within each image, which starts at the top left.
        patches: int64 [batch, patches], as `draw_patches` returns them.

    Returns:
        embeddings [batch, 1 + patches, d] (a class token first), mask int64 [batch, 1 + patches], and the
        patches' places [batch, patches, 2] with the number of rows and columns of the batch.
    """
    features = embeddings.patch_embeddings(pixel_values)  # [batch, d, rows, columns]
    batch, _, rows, columns = features.shape
    mask = _patch_mask(pixel_mask, embeddings.config.patch_size)
    numbers = (patches + rows * columns * torch.arange(batch, device=patches.device)[:, None]).flatten()
    chosen = features.flatten(2).transpose(1, 2).flatten(0, 1).index_select(0, numbers).unflatten(0, (batch, -1))
    chosen_mask = mask.flatten().index_select(0, numbers).unflatten(0, (batch, -1))
    row, column = patches // columns, patches % columns
    grid = embeddings.config.image_size // embeddings.config.patch_size
    table = embeddings.position_embeddings[0]
    positions = _interpolate(table[1:], grid, row, column, mask[:, :, 0].sum(1), mask[:, 0].sum(1))
    tokens = torch.cat([embeddings.cls_token.expand(batch, -1, -1), chosen], 1)
    positions = torch.cat([table[:1].expand(batch, 1, -1), positions.to(table.dtype)], 1)
    whole_mask = functional.pad(chosen_mask, (1, 0), value=1)
    return embeddings.dropout(tokens + positions), whole_mask, (torch.stack([row, column], -1), (rows, columns))


def _patch_mask(pixel_mask: Tensor, patch_size: int) -> Tensor:
    """int64 [batch, rows, columns], 1 at the patches of an image, 0 at its padding."""
    size = tuple(extent // patch_size for extent in pixel_mask.shape[1:])
    return functional.interpolate(pixel_mask[:, None].float(), size=size).long()[:, 0]


def _interpolate(table: Tensor, grid: int, row: Tensor, column: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """A [grid * grid, d] table of positions, interpolated bilinearly to the size of each image.

    Args:
        row, column: int64 [batch, patches], where to read the interpolated table.
        rows, columns: int64 [batch], the sizes of the images; positions beyond them are zero.

    Returns:
        [batch, patches, d], float64 where the table is, else float32.
    """
    dtype = torch.promote_types(table.dtype, torch.float32)
    (top, bottom), down = _neighbours(row, rows[:, None], grid, dtype)
    (left, right), across = _neighbours(column, columns[:, None], grid, dtype)
    inside = ((row < rows[:, None]) & (column < columns[:, None])).to(dtype)
    corners = torch.stack([top * grid + left, top * grid + right, bottom * grid + left, bottom * grid + right], -1)
    up, back = inside - down * inside, 1 - across
    shares = torch.stack([up * back, up * across, down * inside * back, down * inside * across], -1)
    gathered = functional.embedding_bag(
        corners.flatten(0, 1), table.to(dtype), per_sample_weights=shares.flatten(0, 1), mode="sum"
    )
    return gathered.unflatten(0, row.shape)


def _neighbours(at: Tensor, length: Tensor, grid: int, dtype: torch.dtype) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """The two points of a grid around a coordinate whose first and last values are the grid's own, and how far
    from the first one to the second it is."""
    scale = (grid - 1) / (length - 1).clamp(min=1).to(dtype)
    place = (at.to(dtype) * scale).clamp(max=grid - 1)
    first = place.long()
    return (first, (first + 1).clamp(max=grid - 1)), place - first
