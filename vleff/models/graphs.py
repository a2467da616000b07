"""CUDA graphs of packed encoders: on a GPU, starting a layer's kernels one by one takes longer than running them.

A graph has fixed sizes, a ragged batch has not. So the rows of a batch are rounded up to one of few capacities, for
each of which a graph is captured once: rows behind the last sample belong to nobody and change nothing.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from vleff.nn.modes import is_autocast, is_transformed
from vleff.nn.pending_count import PendingCount, can_wait_for
from vleff.nn.ragged import RaggedBatch

Model = TypeVar("Model", bound=nn.Module)
Run = Callable[[RaggedBatch], Tensor]

MOST_GRAPHS = 64  # of an encoder; the one not used for longest goes first
CAPACITIES = 8  # between one power of two and the next
LENGTH_STEP = 64  # the longest sample counts as rounded up to a multiple of this


def use_cuda_graphs(model: Model, enabled: bool = True) -> Model:
    """Lets the packed encoders in an accelerated model capture their layers as CUDA graphs and replay them.

    It holds for inference on a GPU (gradients disabled, evaluation mode, no autocast, no trimmers): the first batch
    of a size is captured, later ones replay it. Sizes are the batch size, the padded length rounded up to 64, and
    the tokens rounded up by at most an eighth; up to 64 graphs are kept for each encoder. Weights may change in
    place; after other changes (another dtype, device or Parameter) graphs are captured anew. One thread at a time.

    Args:
        model: accelerated, or a module that contains accelerated models.
        enabled: False forgets all graphs.

    Returns:
        `model` itself.

    Raises:
        TypeError: there is no packed encoder in `model`.
    """
    from vleff.models.encoder import PackedEncoder

    encoders = [module for module in model.modules() if isinstance(module, PackedEncoder)]
    if not encoders:
        raise TypeError(
            f"model: expected an accelerated model (vleff.accelerate) with a packed encoder, got {type(model).__name__}"
        )
    for encoder in encoders:
        _graphs.pop(encoder, None)
        if enabled:
            _graphs[encoder] = EncoderGraphs(encoder)
    return model


def capacity_for(tokens: int) -> int:
    """The rows of a graph for this many tokens: rounded up to an eighth of the power of two below, at least 64."""
    step = max(64, (1 << max(tokens, 1).bit_length() - 1) // CAPACITIES)
    return max(-(-tokens // step), 1) * step


@dataclass(frozen=True, eq=False)
class CapturedGraph:
    """A graph, and the tensors that it reads and writes."""

    graph: Any
    batch: RaggedBatch
    output: Tensor

    def replay(self, batch: RaggedBatch) -> Tensor:
        """[rows, d], to be read before the next replay."""
        self.batch.values.copy_(batch.values)
        self.batch.offsets.copy_(batch.offsets)
        self.graph.replay()
        return self.output


class EncoderGraphs:
    """The graphs of one encoder.

    Args:
        encoder: whose parameters the graphs read where they are now.
    """

    def __init__(self, encoder: nn.Module) -> None:
        self._encoder = ref(encoder)  # which is the key that these graphs are found by
        self._graphs: OrderedDict[tuple[Any, ...], CapturedGraph] = OrderedDict()
        self._places: list[tuple[Tensor, int]] = []
        self._pool: Any = None

    def takes(self, hidden_states: Tensor) -> bool:
        """Whether a call with these states can be replayed."""
        return (
            hidden_states.device.type == "cuda"
            and can_wait_for(hidden_states)
            and not torch.is_grad_enabled()
            and not is_autocast(hidden_states)
            and not is_transformed()
        )

    def run(self, hidden_states: Tensor, mask: Tensor | None, layers: Run) -> Tensor:
        """What the layers make of a padded batch.

        Args:
            hidden_states: [batch, length, d].
            mask: bool [batch, length], False at padding; None without any.
            layers: runs all layers on packed tokens.

        Returns:
            [batch, length, d], zeros at padding.
        """
        batch, length = hidden_states.shape[:2]
        tokens = batch * length if mask is None else PendingCount(mask.sum()).wait()
        rows = capacity_for(tokens)
        if rows >= batch * length:
            packed = _filled_up(RaggedBatch.pack(hidden_states, mask, rows=batch * length), rows)
        else:
            packed = RaggedBatch.pack(hidden_states, mask, rows=rows)
        longest = -(-length // LENGTH_STEP) * LENGTH_STEP
        output = self._captured(RaggedBatch(packed.values, packed.offsets, longest), layers).replay(packed)
        if packed.slots is None:
            return output[: batch * length].clone().unflatten(0, (batch, length))
        return packed.replace(output).unpack()

    def _captured(self, batch: RaggedBatch, layers: Run) -> CapturedGraph:
        if any(parameter.data_ptr() != place for parameter, place in self._places):
            self._graphs.clear()
        values = batch.values
        size = values.shape[0], batch.batch_size, batch.max_length, values.dtype, values.device
        if size in self._graphs:
            self._graphs.move_to_end(size)
            return self._graphs[size]
        if not self._graphs:
            encoder = self._encoder()
            assert encoder is not None
            self._places = [(parameter, parameter.data_ptr()) for parameter in encoder.parameters()]
            self._pool = torch.cuda.graph_pool_handle()
        captured = _capture(batch, layers, self._pool)
        self._graphs[size] = captured
        if len(self._graphs) > MOST_GRAPHS:
            self._graphs.popitem(last=False)
        return captured


def _capture(batch: RaggedBatch, layers: Run, pool: Any) -> CapturedGraph:
    with torch.inference_mode(False):  # so that they can be written to in any mode
        own = RaggedBatch(batch.values.clone(), batch.offsets.clone(), batch.max_length)
    stream = torch.cuda.Stream(batch.values.device)
    stream.wait_stream(torch.cuda.current_stream(batch.values.device))
    with torch.cuda.stream(stream):  # what libraries make at their first call must not be part of the graph
        layers(own)
    torch.cuda.current_stream(batch.values.device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    _forget_workspaces()
    with torch.cuda.graph(graph, pool=pool):
        output = layers(own)
    _forget_workspaces()
    return CapturedGraph(graph, own, output)


def _forget_workspaces() -> None:
    """Lets cuBLAS take a workspace out of a graph's own memory, and nobody else use it, as torch.compile does: one from
    elsewhere could be freed while the graph still writes to it."""
    forget = getattr(torch._C, "_cuda_clearCublasWorkspaces", None)
    if forget is not None:
        forget()


def _filled_up(batch: RaggedBatch, rows: int) -> RaggedBatch:
    """More rows, that belong to no sample."""
    missing = rows - batch.values.shape[0]
    if missing == 0:
        return batch
    values = torch.cat([batch.values, batch.values.new_zeros(missing, *batch.values.shape[1:])])
    slots = batch.slots
    if slots is not None:
        slots = torch.cat([slots, slots.new_full((missing,), batch.batch_size * batch.max_length)])
    return RaggedBatch(values, batch.offsets, batch.max_length, slots)


_graphs: WeakKeyDictionary[nn.Module, EncoderGraphs] = WeakKeyDictionary()


def graphs_of(encoder: nn.Module) -> EncoderGraphs | None:
    """The graphs of an encoder, None unless `use_cuda_graphs` asked for them."""
    return _graphs.get(encoder) if _graphs else None
