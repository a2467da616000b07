"""TrimmerSet: the trimmers before all layers of one module."""

from typing import Any

from torch import Tensor, nn

from vleff.models.trimming import StreamSpec
from vleff.smarttrim.config import SmartTrimConfig
from vleff.smarttrim.trimmers import HeadTrimmer, TokenTrimmer


class TrimmerSet(nn.Module):
    """The trimmers before all layers of one module; none where trimming is random.

    Args:
        specs: the module's streams.
        config: of the trimming.
    """

    def __init__(self, specs: tuple[StreamSpec, ...], config: SmartTrimConfig) -> None:
        super().__init__()
        self.tokens, self.heads = nn.ModuleDict(), nn.ModuleDict()
        by_name = {spec.name: spec for spec in specs}
        for spec in specs if config.random_shares is None else ():
            rank = max(spec.width // config.reduction, 1)
            other_width = by_name[spec.others[0]].width if spec.others else spec.width
            has_other = bool(spec.others) or spec.modalities == 2
            for number, layer in enumerate(spec.layers):
                if not config.trims_before(number):
                    continue
                if config.tokens:
                    self.tokens[f"{spec.name}_{number}"] = TokenTrimmer(
                        spec.width, other_width if has_other else None, rank, config.initial_logit
                    )
                for block in layer.blocks if config.heads else ():
                    widths = spec.width * spec.modalities
                    if block.memory != spec.name:
                        widths += by_name[block.memory].width * by_name[block.memory].modalities
                    self.heads[f"{spec.name}_{number}_{block.name}"] = HeadTrimmer(
                        widths, block.heads, rank, config.initial_logit
                    )

    def of_tokens(self, stream: str, layer: int) -> TokenTrimmer:
        """The one before a layer of a stream."""
        found: Any = self.tokens[f"{stream}_{layer}"]
        return found

    def of_heads(self, stream: str, layer: int, block: str) -> HeadTrimmer:
        """The one of an attention block."""
        found: Any = self.heads[f"{stream}_{layer}_{block}"]
        return found

    def multiply_adds(self, spec: StreamSpec, layer: int, tokens: Tensor) -> Tensor:
        """float32 [batch], of all before a layer for so many tokens of each sample."""
        total = tokens * 0.0
        if f"{spec.name}_{layer}" in self.tokens:
            total = total + tokens * self.of_tokens(spec.name, layer).multiply_adds
        for block in spec.layers[layer].blocks:
            if f"{spec.name}_{layer}_{block.name}" in self.heads:
                total = total + self.of_heads(spec.name, layer, block.name).multiply_adds
        return total
