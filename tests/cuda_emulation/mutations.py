"""Mistakes put into our kernels one by one; the emulator, the schedules or the results must show each."""

from typing import NamedTuple

from cuda_kernels import Tile

from .building import Change, EmulatedLibrary, build_changed

FORWARD, IMPORTANCE = "token_gather_attention.cuh", "token_gather_attention_importance.cuh"
TILES, DEVICE, ATTENTION_TILES = "ragged_tiles.cuh", "device.cuh", "token_gather_attention_tiles.inc"
BARRIER = "__syncthreads();  // the tile is in, and every warp has left the other buffer"
HALF = Tile("__half", 64, 64, 64)
FLOAT = Tile("float", 64, 64, 64)


class Mutation(NamedTuple):
    """In `file` the text `old`, which stands there once, becomes `new`; only `tile` is compiled."""

    name: str
    file: str
    old: str
    new: str
    tile: Tile = HALF
    head_dim: int = 56  # of the inputs that show it


MUTATIONS = [
    Mutation("drop the barrier", FORWARD, BARRIER, ""),
    Mutation("drop the barrier of importance", IMPORTANCE, BARRIER, ""),
    Mutation("drop the wait", FORWARD, "    wait_for_copies();\n", ""),
    Mutation("shorten the wait", DEVICE, "cp.async.wait_all;", "cp.async.commit_group; cp.async.wait_group 1;"),
    Mutation("store before the warp has read", TILES, "  __syncwarp();\n#pragma unroll", "#pragma unroll"),
    Mutation("read before the warp has stored", TILES, "  __syncwarp();\n  const bool aligned", "  const bool aligned"),
    Mutation("unswizzle", TILES, "chunk ^ (row % 8)", "chunk"),
    Mutation("unswizzle float32", TILES, "chunk ^ (row % 8)", "chunk", FLOAT),
    Mutation("load past the last row", TILES, "? sample.count - first : 0", "? sample.count - first + 1 : 0"),
    Mutation(
        "load past the last column",
        TILES,
        "max(0, min(head_dim - column, Tile::chunk_elements))",
        "Tile::chunk_elements",
        head_dim=40,
    ),
    Mutation("leave keys out", FORWARD, "used = visible - first_key;", "used = visible - first_key - 16;"),
    Mutation("store past the last row", FORWARD, "lane.thread == 0 && row < rows", "lane.thread == 0"),
    Mutation("store past the last column", TILES, "if (e < elements) target[e]", "target[e]", head_dim=52),
    Mutation("see one key too many", FORWARD, "column >= limit[half]", "column > limit[half]"),
    Mutation(
        "swap the words of a fragment",
        TILES,
        "first = {words[0], words[1]}, second = {words[2], words[3]};\n      add_product",
        "first = {words[0], words[2]}, second = {words[1], words[3]};\n      add_product",
    ),
    Mutation(
        "swap the rows of the weights",
        TILES,
        "{packed<T>(low[0], low[1]), packed<T>(low[2], low[3]),",
        "{packed<T>(low[2], low[3]), packed<T>(low[0], low[1]),",
    ),
    Mutation(
        "swap the order of float32 weights",
        TILES,
        "{__float_as_uint(weight[0]), __float_as_uint(weight[2]),",
        "{__float_as_uint(weight[2]), __float_as_uint(weight[0]),",
        FLOAT,
    ),
    Mutation("do not transpose", DEVICE, "m8n8.x4.trans.shared", "m8n8.x4.shared"),
    Mutation("sum half of a row", TILES, "return value + __shfl_xor_sync(whole_warp, value, 2)", "return value"),
    Mutation("shuffle by another distance", TILES, "fmaxf(value, __shfl_xor_sync(whole_warp, value, 2))", "value"),
    Mutation(
        "use one buffer", FORWARD, "first_key += Tile::streamed_rows, buffer ^= 1", "first_key += Tile::streamed_rows"
    ),
    Mutation(
        "ask for too little shared memory",
        FORWARD,
        "4 * Tile::streamed_bytes + 2 * Tile::streamed_rows * 4",
        "4 * Tile::streamed_bytes + Tile::streamed_rows * 4",
    ),
    Mutation("forget to shrink the output", FORWARD, "        out[j][2 * half] *= shrink;\n", ""),
    Mutation("lose the low part of float32", DEVICE, "  multiply_tf32(sum, left_low, right_high);\n", "", FLOAT),
]


def build_mutated(mutation: Mutation | None, tile: Tile) -> EmulatedLibrary:
    """The kernels with one tile and, unless None, one mistake."""
    only = {ATTENTION_TILES: f"VLEFF_TILE({', '.join(map(str, tile))})\n"}
    change = None if mutation is None else Change(*mutation[:4])
    return build_changed("token_gather_attention_kernel.cu", only, change)
