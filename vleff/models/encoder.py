"""The packed Transformer encoder that the model families share.

The hidden states of all samples lie one after the other in one [total_tokens, d] tensor from the embeddings
to the end of the encoder: no multiply-add is spent on padding.
"""

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn.functional import pad
from transformers import PreTrainedModel
from transformers.utils import ModelOutput
from transformers.utils.output_capturing import _CAN_RECORD_REGISTRY

from vleff.models.graphs import graphs_of
from vleff.models.layer import PackedContext, PackedLayer, additive_mask, is_watched, runs_packed, trimmed_context
from vleff.models.trimming import (
    Controls,
    Stream,
    StreamSpec,
    Trimmable,
    active_trimming,
    block_spec,
    layer_spec,
    refuse_watchers,
    remember_stream,
)
from vleff.nn.fused_linear import FusedLinear
from vleff.nn.ragged import RaggedBatch
from vleff.ops.fused_linear import FEWEST_ROWS


class PackedEncoder(Trimmable, nn.Module):
    """A loop over its layers that packs once before it and unpacks once after it.

    Where someone looks at the layers' outputs (hidden states asked for, hooks on layers), transformers' own
    loop calls the layers and each packs and unpacks for itself.
    """

    output_class: ClassVar[type[ModelOutput]]
    layers_name: ClassVar[str] = "layer"  # of the ModuleList of PackedLayers
    # whether the family computes attention by itself, with a mask to add, past transformers' registry
    own_attention: ClassVar[bool] = False
    # whether its calls say is_causal=True, and a token then sees only tokens up to its own
    passes_is_causal: ClassVar[bool] = False
    # whether tokens may be dropped between its layers: nothing after it reads tokens by their places
    trimmable: ClassVar[bool] = False
    # whether attention adds a bias by the tokens' places in the padded batch, which `context` makes
    biased_by_places: ClassVar[bool] = False
    config: Any

    def forward(self, hidden_states: torch.Tensor, attention_mask: Any = None, *args: Any, **kwargs: Any) -> Any:
        """hidden_states [batch, length, d]; runs packed with a bool mask [batch, length] or none."""
        covered = runs_packed(hidden_states, attention_mask, args, kwargs, self.passes_is_causal)
        if active_trimming(self) is not None:
            self.refuse_watched_call(covered, kwargs)
            stream = self.run_trimmed(Stream.pack(hidden_states, attention_mask))
            output = self.output_class(last_hidden_state=unpack_stream(stream))
            return output if kwargs.get("return_dict", True) else output.to_tuple()
        if not covered:
            if self.own_attention:
                attention_mask = additive_mask(attention_mask, hidden_states.dtype)
            return super().forward(hidden_states, attention_mask, *args, **kwargs)
        if self._layers_are_watched(kwargs):
            if attention_mask is not None:  # the first hidden state is the embeddings' output
                hidden_states = hidden_states.masked_fill(~attention_mask[:, :, None], 0)
            return super().forward(hidden_states, attention_mask, **kwargs)
        graphs = graphs_of(self)
        if graphs is not None and not self.training and graphs.takes(hidden_states) and not self.biased_by_places:
            last = graphs.run(hidden_states, attention_mask, self._run_layers)
        else:
            batch = RaggedBatch.pack(hidden_states, attention_mask)
            context = self.context(hidden_states, attention_mask, batch)
            last = self.forward_packed(batch, context).unpack()
        output = self.output_class(last_hidden_state=last)
        return output if kwargs.get("return_dict", True) else output.to_tuple()

    def context(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None, batch: RaggedBatch
    ) -> PackedContext:
        """What the layers have to know of a call: its arguments, and the samples that were packed from them."""
        return PackedContext(batch, causal=self.passes_is_causal)

    def forward_packed(self, batch: RaggedBatch, context: PackedContext) -> RaggedBatch:
        """Runs all layers."""
        self.pack_weights()
        values, rows = batch.values, batch.values.shape[0]
        may_add = values.device.type == "cpu" and not torch.compiler.is_compiling()
        may_add = may_add and context.padded_bias is None and context.memory is None
        if may_add and 0 < rows < FEWEST_ROWS:
            more = _with_one_more_sample(batch)  # otherwise every linear would fill up its rows
            values, context = more.values, replace(context, batch=more)
        for layer in self.packed_layers():
            values = layer(values, context)
        return batch.replace(values[:rows])

    def _run_layers(self, batch: RaggedBatch) -> torch.Tensor:
        return self.forward_packed(batch, PackedContext(batch, causal=self.passes_is_causal)).values

    def run_trimmed(self, stream: Stream) -> Stream:
        """Runs all layers, trimming the stream if a trimming is active."""
        self.pack_weights()
        trimming = active_trimming(self)
        run = None if trimming is None else trimming.begin(stream)
        controls: Controls = {}
        for number, layer in enumerate(self.packed_layers()):
            if run is not None:
                [(stream, controls)] = run.before_layer(number, stream)
            context = trimmed_context(stream, controls, causal=self.passes_is_causal)
            stream = stream.replace(layer(stream.values, context))
        if run is not None:
            run.finish(stream)
        return stream

    def streams(self) -> tuple[StreamSpec, ...]:
        """One stream, each layer with self attention; a family with more says so."""
        layers = self.packed_layers() if self.trimmable else []
        if not layers or not all(isinstance(layer, PackedLayer) for layer in layers):
            return ()
        return (self_attending_stream("tokens", layers),)

    def refuse_watched_call(self, covered: bool, arguments: dict[str, Any]) -> None:
        """Raises ValueError if someone looks at the layers, or the call is not covered."""
        reason = None if covered else "a mask, a cache, a dtype or a device that is not packed"
        if any(is_watched(layer) or layer.has_inner_hooks() for layer in self.packed_layers()):
            reason = "hooks on layers"
        refuse_watchers(arguments, self.config, reason)

    def packed_layers(self) -> list[PackedLayer]:
        """The layers, in their order."""
        return list(getattr(self, self.layers_name))

    def pack_weights(self) -> None:
        """Packs all weights at once: if each moved between the activations, it would leave a hole in memory."""
        pack_weights(self)

    def _layers_are_watched(self, arguments: dict[str, Any]) -> bool:
        watched = arguments.get("output_hidden_states", self.config.output_hidden_states)
        return bool(watched) or any(is_watched(layer) or layer.has_inner_hooks() for layer in self.packed_layers())


def self_attending_stream(name: str, layers: list[PackedLayer], modalities: int = 1) -> StreamSpec:
    """The spec of a stream whose layers attend to nothing but itself."""
    all_parts = [layer.parts() for layer in layers]
    width: Any = all_parts[0].attention.output.out_features
    return StreamSpec(
        name,
        width,
        tuple(layer_spec([block_spec("own", parts.attention, name, width)], parts.feed_forward) for parts in all_parts),
        modalities,
    )


def co_attending_stream(name: str, other: str, other_width: int, layers: list[PackedLayer]) -> StreamSpec:
    """The spec of a stream whose layers attend to it and to another one, of the other modality."""
    spec = self_attending_stream(name, layers)
    with_cross = []
    for layer, own in zip(layers, spec.layers, strict=True):
        cross = layer.parts().cross_attention
        blocks = () if cross is None else (block_spec("cross", cross, other, other_width),)
        with_cross.append(own._replace(blocks=own.blocks + blocks))
    return replace(spec, layers=tuple(with_cross), others=(other,))


def unpack_stream(stream: Stream) -> torch.Tensor:
    """The padded batch, from which a later encoder can go on with the stream's gates."""
    return remember_stream(stream.unpack(), stream)


def _with_one_more_sample(batch: RaggedBatch) -> RaggedBatch:
    """The samples, and zeros up to the rows that a fused linear computes at least."""
    missing = FEWEST_ROWS - batch.values.shape[0]
    offsets = torch.cat([batch.offsets, batch.offsets.new_full((1,), FEWEST_ROWS)])
    return RaggedBatch(pad(batch.values, (0, 0, 0, missing)), offsets, max(batch.max_length, missing))


class PackedModel:
    """A base model whose own class is exchanged, because its forward holds the loop over the layers."""

    original_class: ClassVar[type[PreTrainedModel]]
    _can_record_outputs: ClassVar[Any]

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        # transformers looks up by the class's name which outputs of layers can be captured
        dict.__setitem__(_CAN_RECORD_REGISTRY, str(cls), cls._can_record_outputs)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """As of the original class, under whose name it is saved."""
        packed_class = self.__class__
        self.__class__ = self.original_class  # type: ignore[assignment]
        try:
            self.save_pretrained(*args, **kwargs)
        finally:
            self.__class__ = packed_class


def pack_weights(root: nn.Module) -> None:
    """Packs the weights of all FusedLinears in `root` if the next forward is an inference forward."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return
    first = next((module for module in root.modules() if isinstance(module, FusedLinear)), None)
    if first is not None and not first.is_packed:
        for module in root.modules():
            if isinstance(module, FusedLinear):
                module.pack_()
