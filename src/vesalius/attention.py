"""Attention as it is computed, recognised by the operations it is made of.

While an `AttentionMode` is on, it sees every torch function that runs: `scaled_dot_product_attention`, or the
matmul, softmax, matmul of eager attention. From either it hands out `q k v pattern z`, each [batch, head, position,
d_head] or [batch, head, query, key], keys and values once for every query head, and takes back what they became.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_MATMULS = {torch.matmul, torch.bmm, Tensor.matmul, Tensor.__matmul__, Tensor.bmm}
_SOFTMAXES = {F.softmax, torch.softmax, Tensor.softmax}
_WATCHED = {F.scaled_dot_product_attention, *_MATMULS, *_SOFTMAXES}


class AttentionMode(TorchFunctionMode):
    """On while a tapped attention module runs; recognises attention by the operations it is made of."""

    def __init__(self, is_open: Callable[[str], bool], apply: Callable[[str, Tensor], Tensor]) -> None:
        super().__init__()
        self.is_open, self.apply = is_open, apply
        self.pattern: Tensor | None = None

    def __torch_function__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if function not in _WATCHED:
            return function(*args, **(kwargs or {}))
        if function is F.scaled_dot_product_attention:
            return self.fused(*args, **(kwargs or {}))
        if function in _MATMULS and len(args) == 2 and args[0].dim() == args[1].dim() == 4:
            return (
                self.weighted(function, *args) if self.pattern is not None else self.scored(function, *args)
            )
        result = function(*args, **(kwargs or {}))
        if function in _SOFTMAXES and result.dim() == 4:
            self.pattern = result = self.at("pattern", result)
        return result

    def at(self, port: str, value: Tensor) -> Tensor:
        return self.apply(port, value) if self.is_open(port) else value

    def fused(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """`scaled_dot_product_attention`, its ports read and edited; the original kernel runs unless one changed."""
        heads = query.shape[1]
        every_key, every_value = _for_each_query_head(key, heads), _for_each_query_head(value, heads)
        q, k, v = self.at("q", query), self.at("k", every_key), self.at("v", every_value)
        if self.is_open("pattern"):
            pattern = _attention_pattern(q, k, attn_mask, is_causal, scale)
            edited = self.at("pattern", pattern)
            if edited is not pattern:
                return self.at("z", edited.to(v.dtype) @ v)
        if k is not every_key or v is not every_value:
            key, value, enable_gqa = k, v, False
        return self.at(
            "z",
            F.scaled_dot_product_attention(
                q, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
            ),
        )

    def scored(self, function: Any, query: Tensor, key: Tensor) -> Tensor:
        k = key.transpose(-1, -2)
        edited = self.at("k", k)
        return function(self.at("q", query), key if edited is k else edited.transpose(-1, -2))

    def weighted(self, function: Any, pattern: Tensor, value: Tensor) -> Tensor:
        self.pattern = None
        return self.at("z", function(pattern, self.at("v", value)))


def _for_each_query_head(value: Tensor, heads: int) -> Tensor:
    return value if value.shape[1] == heads else value.repeat_interleave(heads // value.shape[1], dim=1)


def _attention_pattern(
    q: Tensor, k: Tensor, mask: Tensor | None, is_causal: bool, scale: float | None
) -> Tensor:
    scores = (q * (q.shape[-1] ** -0.5 if scale is None else scale)) @ k.transpose(-1, -2)
    if is_causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if mask is None:
        return scores.softmax(-1)
    if mask.dtype is not torch.bool:
        return (scores + mask).softmax(-1)
    return scores.masked_fill(~mask, -torch.inf).softmax(-1).masked_fill(~mask.any(-1, keepdim=True), 0.0)
