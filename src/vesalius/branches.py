"""Many continuations of one forward pass, for the price of the parts in which they differ.

To change one activation at layer l and see what the last token becomes, everything before layer l, and every
position before the first changed one, need not be computed again. A `Trunk` is one prompt, run once; its
branches are rows that join its batch at the input of their layer, so that one forward carries the branches of
all layers. A Hugging Face model moreover runs only the positions from the first changed one on, with the
trunk's keys and values behind it. The forward ends at what the unembedding reads at the last position, and
logits are computed of the tokens in question alone. Nothing is approximated.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vesalius.access import Edit, intervene, record
from vesalius.metrics import require_finite
from vesalius.model import Model
from vesalius.site import Site

Rows = Mapping[int, Float[Tensor, "_ pos d_model"]]
"""For each layer the residual streams of the branches that begin at its input."""


@dataclass(frozen=True)
class Trunk:
    """One prompt and its activations: residual stream before each layer, heads' outputs, and the end of it."""

    model: Model
    ids: Int[Tensor, "1 pos"]
    residual: Float[Tensor, "layer pos d_model"]
    z: Float[Tensor, "layer head pos d_head"]
    end: Float[Tensor, " d_model"]
    """What the unembedding reads at the last position."""
    keys_values: list[tuple[Tensor, Tensor]] | None
    """At every layer, if the model can go on from a prefix."""

    def start(self, position: int) -> int:
        """Where the branches have to begin if `position` is the first that they change."""
        return 0 if self.keys_values is None else position

    def branch(
        self, start: int, rows: Rows, edits: Mapping[str, Edit] | None = None
    ) -> Float[Tensor, "branch d_model"]:
        """What the unembedding reads at the last position of every branch, in the order of their layers.

        `rows` hold the positions from `start` on. `edits` apply to the whole batch, in which the branches of
        layer l are the last rows at layer l.
        """
        first = min(rows)  # there the trunk's own row, which only led to it, is let go
        joining: dict[str, Edit] = {
            f"resid_pre@{l}": partial(_joined if l > first else _begun, rows=new) for l, new in rows.items()
        }
        if "resid_mid" in self.model.architecture.sites:  # after the last attention one position is enough
            joining[f"resid_mid@{self.model.n_layers - 1}"] = _last_position
        prefix = {"past_key_values": self._prefix(start, rows)} if start else {}
        end = _end(self.model)
        with (
            intervene(self.model, joining, resize=True),
            intervene(self.model, edits or {}),
            record(self.model, end, stop=True) as acts,
        ):
            self.model(self.ids[:, start:], **prefix)
        return require_finite(acts[end][:, -1], end)

    def logits(
        self, end: Float[Tensor, "*branch d_model"], tokens: Sequence[int]
    ) -> Float[Tensor, "*branch token"]:
        """The logits that the unembedding makes of `end`, of some tokens."""
        chosen = torch.as_tensor(tokens, device=self.model.device)
        logits = end @ self.model.weight("W_U")[:, chosen].to(end)
        return logits + self.model.weight("b_U")[chosen].to(end) if self.model.has("b_U") else logits

    def _prefix(self, start: int, rows: Rows) -> Any:
        """The trunk's keys and values before `start`, once for every row that a layer sees."""
        from transformers import DynamicCache

        cache, batch = DynamicCache(), 0
        for layer, pair in enumerate(self.keys_values or ()):
            batch += len(rows.get(layer, ()))
            keys, values = (value[:, :, :start].expand(max(batch, 1), -1, -1, -1) for value in pair)
            cache.update(keys, values, layer)
        return cache


def trunks(model: Model, ids: Int[Tensor, "prompt pos"]) -> list[Trunk]:
    """Run prompts of one length together, and keep what the branches of each need."""
    ids, end = ids.to(model.device), _end(model)
    hugging_face = type(model.module).__module__.startswith("transformers.")
    with (
        record(model, ["resid_pre@*", "z@*", end]) as acts,
        intervene(model, {end: _last_position}, resize=True),
    ):
        output = model(ids, use_cache=True) if hugging_face else model(ids)
    residual, z = acts.stack("resid_pre@*"), acts.stack("z@*")
    ends = require_finite(acts[end][:, -1], end)
    cache = output["past_key_values"].layers if hugging_face else []
    whole = hugging_face and all(layer.keys.shape[2] == ids.shape[1] for layer in cache)
    return [
        Trunk(
            model,
            ids[n : n + 1],
            residual[:, n],
            z[:, n],
            ends[n],
            [(layer.keys[n : n + 1], layer.values[n : n + 1]) for layer in cache] if whole else None,
        )
        for n in range(len(ids))
    ]


def _end(model: Model) -> str:
    """The address of what the unembedding reads."""
    return f"{Site.parse(model.architecture.sites['logits']).path}:in"


def _joined(x: Float[Tensor, "batch pos d_model"], rows: Float[Tensor, "row pos d_model"]) -> Tensor:
    return torch.cat([x, rows])


def _begun(x: Float[Tensor, "batch pos d_model"], rows: Float[Tensor, "row pos d_model"]) -> Tensor:
    return rows


def _last_position(x: Tensor) -> Tensor:
    """[batch, 1, d_model]: added to a whole stream, it is right at the last position. OPT's flat batch stays."""
    return x[:, -1:] if x.dim() == 3 else x
