"""The pair-to-sequence model in plain torch, padded: what PairToSequence computes, for tests and benchmarks.

A search repeats the memories for each beam, keeps sources that are done in the batch until the last one is, and makes
the probabilities of all words by a scatter, as such models are commonly written.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vleff.nn import RaggedLSTM
from vleff.unanswerable.decoding import Rules
from vleff.unanswerable.encoders import LstmEncoder
from vleff.unanswerable.generation import GenerationSettings, Hypothesis, best
from vleff.unanswerable.model import PairToSequence
from vleff.unanswerable.vocabulary import START_NUMBER, UNKNOWN_NUMBER

SIDES = ("question", "paragraph")


class PlainPairToSequence(nn.Module):
    """Copies of a model's weights in torch's own layers.

    Args:
        model: with LSTMs or a transformer as encoder.
    """

    def __init__(self, model: PairToSequence) -> None:
        super().__init__()
        self.config = model.config
        width, self.heads = self.config.width, self.config.heads
        self.words = nn.Embedding(self.config.vocabulary_size, width)
        self.letters = nn.Embedding(*model.embedding.letters.weight.shape)
        self.types = nn.Embedding(*model.encoder.types.weight.shape)
        for own, theirs in (
            (self.words, model.embedding.words),
            (self.letters, model.embedding.letters),
            (self.types, model.encoder.types),
        ):
            own.weight.data.copy_(theirs.weight)
        encoder: Any = model.encoder.encoder
        self.transformer = self.projection = None
        if isinstance(encoder, LstmEncoder):
            self.lstms = nn.ModuleDict({side: _lstm(encoder.lstms[side]) for side in SIDES})
        else:
            self.transformer, self.projection = encoder.model, _linear(encoder.projection)
        names = ("query", "key_value", "mix")
        self.fusions = nn.ModuleDict(
            {
                side: nn.ModuleDict({name: _linear(getattr(model.encoder.fusions[side], name)) for name in names})
                for side in SIDES
            }
        )
        decoder = model.decoder
        places = torch.zeros(1, width) if decoder.places is None else decoder.places.weight
        self.places = nn.Parameter(places.detach().clone())
        self.decoder_lstm = _lstm(decoder.lstm)
        names = ("initial", "query", "question", "paragraph", "output")
        self.decoder = nn.ModuleDict({name: _linear(getattr(decoder, name)) for name in names})
        names = ("query", "question_key", "paragraph_key", "gate", "vocabulary")
        self.copy = nn.ModuleDict({name: _linear(getattr(decoder.copy, name)) for name in names})
        self.train(model.training)

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Log-probabilities of targets and coverage losses, [targets] each, without padding."""
        read = self.read(batch)
        inputs = self.drop(pad(read["written"][batch["inputs"]], batch["target_offsets"]))
        states, _ = self.decoder_lstm(inputs, (read["hidden"][None], read["cell"][None]))
        states = states + self.at(torch.arange(states.shape[1]))
        probabilities, attention = self.probabilities(states, read, batch["extended_size"] + 1)
        targets = pad(batch["targets"], batch["target_offsets"])
        mask = mask_of(batch["target_offsets"])
        log_probs = probabilities.gather(2, targets[..., None]).squeeze(2).log()
        coverage = sum(torch.minimum(one, one.cumsum(1) - one).sum(2) for one in attention)
        return log_probs[mask], coverage[mask]

    def loss(self, batch: dict[str, Any]) -> Tensor:
        log_probs, coverage = self(batch)
        possible = log_probs > -torch.inf
        loss = -log_probs[possible].sum() / possible.sum()
        return loss + self.config.coverage * coverage.mean() if self.config.coverage else loss

    def drop(self, values: Tensor) -> Tensor:
        return functional.dropout(values, self.config.dropout, self.training)

    def at(self, places: Tensor) -> Tensor:
        return self.places[places.clamp(max=len(self.places) - 1)]

    def read(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Vectors of the batch's words, both memories with masks, and the decoder's first states."""
        words = self.words(batch["words"])
        of_letters = self.letters(batch["letters"]).sum(1)
        lengths = batch["word_lengths"]
        starts = functional.pad(lengths.cumsum(0), (1, 0))[:-1, None]
        places = torch.arange(int(lengths.max()), device=lengths.device)
        letters = of_letters[(starts + places).clamp(max=len(of_letters) - 1)]
        letters = letters.masked_fill((places >= lengths[:, None])[..., None], -torch.inf)
        spelled = letters.amax(1).masked_fill(lengths[:, None] == 0, 0)
        written = words + spelled * (batch["words"] == UNKNOWN_NUMBER)[:, None]
        read: dict[str, Any] = {"written": written, "ids": {}, "masks": {}}
        states = {}
        for side in SIDES:
            offsets = batch[f"{side}_offsets"]
            read["masks"][side] = mask_of(offsets)
            read["ids"][side] = pad(batch[f"{side}_ids"].long(), offsets)
            types = batch["paragraph_types"] if side == "paragraph" else torch.zeros_like(batch["question_words"])
            embedded = self.drop((words + spelled)[batch[f"{side}_words"]] + self.types(types))
            states[side] = self.encode(side, pad(embedded, offsets), embedded, batch)
        question, paragraph = (states[side] for side in SIDES)
        read["question"] = self.drop(self.fuse("question", question, paragraph, read["masks"]["paragraph"]))
        read["paragraph"] = self.drop(self.fuse("paragraph", paragraph, question, read["masks"]["question"]))
        counts = read["masks"]["question"].sum(1, keepdim=True)
        of_question = (read["question"] * read["masks"]["question"][..., None]).sum(1) / counts
        read["question"] = read["question"] + self.at(torch.arange(read["question"].shape[1]))
        for side in SIDES:
            read[f"{side}_copied"] = self.copy[f"{side}_key"](read[side])
            read[f"{side}_kv"] = self.decoder[side](read[side]).chunk(2, 2)
        is_answer = pad(batch["paragraph_types"], batch["paragraph_offsets"]) == 2
        of_answer = (read["paragraph"] * is_answer[..., None]).sum(1) / is_answer.sum(1, keepdim=True).clamp(min=1)
        initial = self.decoder["initial"](torch.cat([of_question, of_answer], 1)).tanh()
        read["hidden"], read["cell"] = (part.contiguous() for part in initial.chunk(2, 1))
        return read

    def encode(self, side: str, padded: Tensor, embedded: Tensor, batch: dict[str, Any]) -> Tensor:
        offsets = batch[f"{side}_offsets"]
        if self.transformer is None:
            return read_both_ways(self.lstms[side], padded, offsets.diff())
        mask = batch[f"{side}_attention_mask"]
        states = self.transformer(input_ids=batch[f"{side}_input_ids"], attention_mask=mask).last_hidden_state
        first = states.flatten(0, 1)[batch[f"{side}_first"]]
        return pad(self.projection(first) + embedded, offsets)

    def fuse(self, side: str, states: Tensor, other: Tensor, mask: Tensor) -> Tensor:
        layers = self.fusions[side]
        attended = self.attend(layers["query"](states), *layers["key_value"](other).chunk(2, 2), mask)
        gate, new = layers["mix"](torch.cat([states, attended], 2)).chunk(2, 2)
        gate = gate.sigmoid()
        return gate * new.tanh() + (1 - gate) * states

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        by_head = (x.unflatten(2, (self.heads, -1)).transpose(1, 2) for x in (queries, keys, values))
        attended = functional.scaled_dot_product_attention(*by_head, attn_mask=mask[:, None, None])
        return attended.transpose(1, 2).flatten(2)

    def probabilities(self, states: Tensor, read: dict[str, Any], extended_size: int) -> tuple[Tensor, list[Tensor]]:
        """[batch, targets, extended_size], and the attention of copying to both memories."""
        queries = self.decoder["query"](states).chunk(2, 2)
        contexts = [
            self.attend(query, *read[f"{side}_kv"], read["masks"][side])
            for query, side in zip(queries, SIDES, strict=True)
        ]
        outputs = self.drop(self.decoder["output"](torch.cat([states, *contexts], 2)).tanh())
        gate = self.copy["gate"](outputs).softmax(2)
        words = self.copy["vocabulary"](outputs).softmax(2)
        words = functional.pad(gate[..., :1] * words, (0, extended_size - words.shape[2]))
        queries = self.copy["query"](outputs) * self.config.width**-0.5
        attention = []
        for number, side in enumerate(SIDES, 1):
            logits = queries @ read[f"{side}_copied"].transpose(1, 2)
            weights = logits.masked_fill(~read["masks"][side][:, None], -torch.inf).softmax(2)
            ids = read["ids"][side][:, None].expand(weights.shape)
            words = words.scatter_add(2, ids, gate[..., number, None] * weights)
            attention.append(weights)
        return words, attention

    def search(
        self, batch: dict[str, Any], rules: Rules, settings: GenerationSettings, count: int = 1
    ) -> list[list[Hypothesis]]:
        """What `beam_search` finds for the sources of a batch, with one group of beams."""
        beams, sources = settings.group_beams(count), len(rules.longest)
        read = self.read(batch)
        look_up = self.table(batch, read)
        repeated = repeat(read, beams)
        of_rows = torch.arange(sources).repeat_interleave(beams)
        hidden, cell = repeated["hidden"], repeated["cell"]
        history = torch.zeros(sources * beams, 0, dtype=torch.int64)
        scores = torch.full((sources, beams), -torch.inf, dtype=hidden.dtype)
        scores[:, 0] = 0
        inputs = self.words.weight[START_NUMBER].expand(sources * beams, -1)
        found: list[list[Hypothesis]] = [[] for _ in range(sources)]
        done = torch.zeros(sources, dtype=torch.bool)
        while not done.all():
            states, (hidden, cell) = self.decoder_lstm(inputs[:, None], (hidden[None], cell[None]))
            hidden, cell = hidden[0], cell[0]
            states = states + self.at(torch.tensor([history.shape[1]]))
            log_probs = self.probabilities(states, repeated, batch["extended_size"])[0].squeeze(1).log()
            rules.apply(log_probs, history, of_rows)
            size = log_probs.shape[1]
            together = scores[..., None] + log_probs.unflatten(0, (sources, beams))
            totals, places = together.flatten(1).topk(2 * beams)
            parents, words = places // size, places % size
            ends = words == rules.end
            for source, rank in (ends[:, :beams] & (totals[:, :beams] > -torch.inf)).nonzero().tolist():
                if not done[source]:
                    ended = history[source * beams + parents[source, rank]].tolist()
                    one = Hypothesis.ended(ended, totals[source, rank].item(), settings.length_penalty)
                    found[source] = best([*found[source], one])[:beams]
            going = ends.to(torch.uint8).argsort(dim=1, stable=True)[:, :beams]
            scores = totals.masked_fill(ends, -torch.inf).gather(1, going)
            parents, words = parents.gather(1, going), words.gather(1, going)
            rows = (parents + torch.arange(sources)[:, None] * beams).flatten()
            history = torch.cat([history[rows], words.view(-1, 1)], 1)
            hidden, cell = hidden[rows], cell[rows]
            inputs = look_up(of_rows, words.flatten())
            written = history.shape[1]
            with_end = scores.amax(1) / (written + 1) ** settings.length_penalty
            worst = torch.tensor([one[-1].score if len(one) == beams else -torch.inf for one in found])
            done |= ~((with_end > worst) & (rules.longest >= written))
        return found

    def table(self, batch: dict[str, Any], read: dict[str, Any]) -> Any:
        """What the decoder reads, by sources and their numbers of the extended vocabulary."""
        generated = self.config.generated_words
        extended = read["written"][batch["extended_words"]]
        starts = batch["extended_offsets"][:-1] - generated

        def look_up(sources: Tensor, words: Tensor) -> Tensor:
            vectors = self.words(words.clamp(max=generated - 1))
            if not len(extended):
                return vectors
            is_extended = words >= generated
            own = extended[torch.where(is_extended, words + starts[sources], 0)]
            return torch.where(is_extended[:, None], own, vectors)

        return look_up


def repeat(read: dict[str, Any], beams: int) -> dict[str, Any]:
    """The memories once for each beam."""

    def repeated(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: repeated(part) for name, part in value.items()}
        if isinstance(value, tuple):
            return tuple(map(repeated, value))
        return value.repeat_interleave(beams, 0)

    return {name: repeated(value) for name, value in read.items() if name != "written"}


def read_both_ways(lstm: nn.LSTM, padded: Tensor, lengths: Tensor) -> Tensor:
    """A bidirectional LSTM whose second direction begins at each text's end.

    Packed sequences give the same and take twice as long on the CPU, so this is the stronger baseline.
    """
    places = torch.arange(padded.shape[1], device=padded.device)
    turned = torch.where(places < lengths[:, None], lengths[:, None] - 1 - places, places).long()[..., None]
    halves = []
    for end in ("", "_reverse"):
        weights = [getattr(lstm, f"{name}_l0{end}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        states = padded.new_zeros(1, padded.shape[0], lstm.hidden_size)
        x = padded.gather(1, turned.expand_as(padded)) if end else padded
        halves.append(torch.lstm(x, (states, states), weights, True, 1, 0.0, False, False, True)[0])
    back = halves[1].gather(1, turned.expand_as(halves[1]))
    return torch.cat([halves[0], back], 2)


def pad(rows: Tensor, offsets: Tensor) -> Tensor:
    mask = mask_of(offsets)
    padded = rows.new_zeros(*mask.shape, *rows.shape[1:])
    padded[mask] = rows
    return padded


def mask_of(offsets: Tensor) -> Tensor:
    lengths = offsets.diff()
    return torch.arange(int(lengths.max()), device=offsets.device) < lengths[:, None]


def _linear(linear: nn.Linear) -> nn.Linear:
    own = nn.Linear(linear.in_features, linear.out_features, linear.bias is not None)
    own.load_state_dict(linear.state_dict())
    return own


def _lstm(ours: RaggedLSTM) -> nn.LSTM:
    made = nn.LSTM(ours.input.in_features, ours.hidden_size, bidirectional=ours.directions == 2, batch_first=True)
    for number, end in enumerate(["", "_reverse"][: ours.directions]):
        part = slice(number * 4 * ours.hidden_size, (number + 1) * 4 * ours.hidden_size)
        getattr(made, f"weight_ih_l0{end}").data.copy_(ours.input.weight[part])
        getattr(made, f"bias_ih_l0{end}").data.copy_(ours.input.bias[part])
        getattr(made, f"bias_hh_l0{end}").data.zero_()
        getattr(made, f"weight_hh_l0{end}").data.copy_(ours.recurrent[number])
    return made


def parameters_in_order(
    model: PairToSequence, plain: PlainPairToSequence
) -> list[tuple[str, Tensor, Sequence[Tensor]]]:
    """Parameters of a model with LSTMs, each with those of the plain one that it holds."""
    pairs: list[tuple[str, Tensor, Sequence[Tensor]]] = [
        ("words", model.embedding.words.weight, [plain.words.weight]),
        ("letters", model.embedding.letters.weight, [plain.letters.weight]),
        ("types", model.encoder.types.weight, [plain.types.weight]),
        ("places", model.decoder.get_parameter("places.weight"), [plain.places]),
    ]

    def add_linear(name: str, linear: nn.Linear, own: Any) -> None:
        pairs.append((f"{name}.weight", linear.weight, [own.weight]))
        if own.bias is not None:
            pairs.append((f"{name}.bias", linear.bias, [own.bias]))

    def add_lstm(name: str, lstm: RaggedLSTM, own: nn.LSTM) -> None:
        ends = ["", "_reverse"][: lstm.directions]
        for ours, theirs in (("input.weight", "weight_ih"), ("input.bias", "bias_ih"), ("recurrent", "weight_hh")):
            value = lstm.get_parameter(ours)
            pairs.append((f"{name}.{ours}", value.flatten(0, 1) if ours == "recurrent" else value,
                          [getattr(own, f"{theirs}_l0{end}") for end in ends]))  # fmt: skip

    encoder: Any = model.encoder.encoder
    for side in SIDES:
        add_lstm(side, encoder.lstms[side], plain.lstms[side])
        for name, own in plain.fusions[side].items():
            add_linear(f"{side}.{name}", getattr(model.encoder.fusions[side], name), own)
    add_lstm("decoder", model.decoder.lstm, plain.decoder_lstm)
    for part, layers in ((model.decoder, plain.decoder), (model.decoder.copy, plain.copy)):
        for name, own in layers.items():
            add_linear(name, getattr(part, name), own)
    return pairs
