"""Many continuations of one forward pass, for the price of the parts in which they differ.

To change one activation at layer l and see what the last token becomes, everything before layer l, and every
position before the first changed one, need not be computed again. A `Trunk` is one prompt, run once; its
branches are rows that join its batch at the input of their layer, so that one forward carries the branches of
all layers. A Hugging Face model moreover runs only the positions from the first changed one on, with the
trunk's keys and values behind it. Only the last position is unembedded. Nothing is approximated.
"""

from collections.abc import Mapping
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
    """One prompt and its activations: residual stream before each layer, heads' outputs, logits at the
    end."""

    model: Model
    ids: Int[Tensor, "1 pos"]
    residual: Float[Tensor, "layer pos d_model"]
    z: Float[Tensor, "layer head pos d_head"]
    logits: Float[Tensor, " d_vocab"]
    keys_values: list[tuple[Tensor, Tensor]] | None
    """At every layer, if the model can go on from a prefix."""

    def start(self, position: int) -> int:
        """Where the branches have to begin if `position` is the first that they change."""
        return 0 if self.keys_values is None else position

    def branch(
        self, start: int, rows: Rows, edits: Mapping[str, Edit] | None = None
    ) -> Float[Tensor, "branch d_vocab"]:
        """Logits at the last position of every branch, in the order of their layers.

        `rows` hold the positions from `start` on. `edits` apply to the whole batch, in which the branches of
        layer l are the last rows at layer l.
        """
        joining: dict[str, Edit] = {f"resid_pre@{l}": partial(_joined, rows=new) for l, new in rows.items()}
        unembed = Site.parse(self.model.architecture.sites["logits"]).path
        joining[f"{unembed}:in"] = _last_position
        prefix = {"past_key_values": self._prefix(start, rows)} if start else {}
        with (
            intervene(self.model, joining, resize=True),
            intervene(self.model, edits or {}),
            record(self.model, "logits") as acts,
        ):
            self.model(self.ids[:, start:], **prefix)
        return require_finite(acts["logits"][1:, -1], "logits")

    def _prefix(self, start: int, rows: Rows) -> Any:
        """The trunk's keys and values before `start`, once for every row that a layer sees."""
        from transformers import DynamicCache

        cache, batch = DynamicCache(), 1
        for layer, pair in enumerate(self.keys_values or ()):
            batch += len(rows.get(layer, ()))
            keys, values = (value[:, :, :start].expand(batch, -1, -1, -1) for value in pair)
            cache.update(keys, values, layer)
        return cache


def trunk(model: Model, ids: Int[Tensor, " pos"]) -> Trunk:
    """Run one prompt and keep what its branches need."""
    ids = ids[None].to(model.device)
    hugging_face = type(model.module).__module__.startswith("transformers.")
    with record(model, ["resid_pre@*", "z@*", "logits"]) as acts:
        output = model(ids, use_cache=True) if hugging_face else model(ids)
    keys_values = None
    if hugging_face and all(
        layer.keys.shape[2] == ids.shape[1] for layer in output["past_key_values"].layers
    ):
        keys_values = [(layer.keys, layer.values) for layer in output["past_key_values"].layers]
    residual, z = acts.stack("resid_pre@*")[:, 0], acts.stack("z@*")[:, 0]
    return Trunk(model, ids, residual, z, require_finite(acts["logits"][0, -1], "logits"), keys_values)


def _joined(x: Float[Tensor, "batch pos d_model"], rows: Float[Tensor, "row pos d_model"]) -> Tensor:
    return torch.cat([x, rows])


def _last_position(x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch 1 d_model"]:
    return x[:, -1:]
