"""The network of Li et al. 2023 (Emergent World Representations, arXiv 2210.13382): a GPT that reads moves of Othello.

Pre-norm, learned positions added to the stream, biases everywhere, GELU; a token for each of the 60 squares that can
be played and one that is never read, and 59 positions: no token begins a game.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from vesalius.errors import VesaliusError


class OthelloGPT(nn.Module):
    """`shape` holds the arguments that rebuild it; its weights come from a checkpoint.

    >>> shape = dict(n_layers=1, d_model=8, n_heads=2, d_mlp=16, d_vocab=13, n_ctx=11)
    >>> OthelloGPT(**shape)(torch.tensor([[2, 1, 4]])).shape
    torch.Size([1, 3, 13])
    """

    def __init__(
        self, *, n_layers: int, d_model: int, n_heads: int, d_mlp: int, d_vocab: int, n_ctx: int
    ) -> None:
        super().__init__()
        self.shape = {
            "n_layers": n_layers, "d_model": d_model, "n_heads": n_heads, "d_mlp": d_mlp, "d_vocab": d_vocab,
            "n_ctx": n_ctx,
        }  # fmt: skip
        if d_model % n_heads:
            raise VesaliusError(f"d_model {d_model} is not a multiple of {n_heads} heads")
        self.embed = nn.Embedding(d_vocab, d_model)
        self.positions = nn.Parameter(torch.zeros(n_ctx, d_model))
        self.blocks = nn.ModuleList(Block(d_model, n_heads, d_mlp) for _ in range(n_layers))
        self.norm = nn.LayerNorm(d_model)
        self.unembed = nn.Linear(d_model, d_vocab)

    def forward(
        self, input_ids: Int[Tensor, "batch pos"], attention_mask: Int[Tensor, "batch pos"] | None = None
    ) -> Float[Tensor, "batch pos d_vocab"]:
        """Logits of the next move. Padding may only follow a game, where no move looks at it: no mask is needed."""
        x = self.embed(input_ids) + self.positions[: input_ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.unembed(self.norm(x))


class Block(nn.Module):
    """Attention, then an MLP."""

    def __init__(self, d_model: int, n_heads: int, d_mlp: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(d_model)
        self.attn = Attention(d_model, n_heads)
        self.norm2 = nn.LayerNorm(d_model)
        self.mlp = MLP(d_model, d_mlp)

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Attention(nn.Module):
    """Causal multi-head attention with biases."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model) for _ in range(4))

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        q, k, v = (
            rearrange(heads, "batch pos (head d_head) -> batch head pos d_head", head=self.n_heads)
            for heads in (self.q_proj(x), self.k_proj(x), self.v_proj(x))
        )
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(rearrange(z, "batch head pos d_head -> batch pos (head d_head)"))


class MLP(nn.Module):
    """One hidden layer of GELU neurons."""

    def __init__(self, d_model: int, d_mlp: int) -> None:
        super().__init__()
        self.up = nn.Linear(d_model, d_mlp)
        self.act = nn.GELU()
        self.down = nn.Linear(d_mlp, d_model)

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        return self.down(self.act(self.up(x)))


def board_size(d_vocab: int, n_ctx: int) -> int | None:
    """The board of a network with these sizes, or None if they are those of no player of Othello.

    >>> board_size(61, 59), board_size(33, 32), board_size(50257, 1024)
    (8, 6, None)
    """
    sizes = {size * size - 3: size for size in (4, 6, 8)}
    return sizes.get(d_vocab) if n_ctx in (d_vocab - 1, d_vocab - 2) else None
