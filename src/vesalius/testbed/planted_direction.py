"""A direction that we put there: activations with a concept planted in them, and a linear classifier written by hand.

The activations are the traps of reading: each pair shares a content, differs by ±u along the planted direction u, and
by chance along one nuisance direction. Where the nuisance is larger than the concept every principal component is
wrong; the difference of means is not (measured of Zou et al. 2023's readers, arXiv 2310.01405).

The network is a transformer of one layer without norms whose head averages over the text. A word's embedding holds
its sentiment along the planted direction and something of its own beside it, and the unembedding of `yes` is the
direction itself: steering by αv raises the logit of `yes` by exactly α|v|².
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vesalius.architectures.toy import ToyTransformer
from vesalius.data.pairs import Pairs
from vesalius.model import Model

GOOD = [f"good{number}" for number in range(24)]
BAD = [f"bad{number}" for number in range(24)]
THINGS = ["film", "book", "meal", "day"]
WORDS = ["[BOS]", "the", "was", "is", "it", ".", "so", "yes", "no", *THINGS, *GOOD, *BAD]


@dataclass(frozen=True, eq=False)
class PlantedPairs:
    """Activations with the concept and without, and the direction that tells them apart."""

    positive: Float[Tensor, "pair place d_model"]
    negative: Float[Tensor, "pair place d_model"]
    direction: Float[Tensor, " d_model"]


def planted_pairs(
    *, n_pairs: int = 200, d_model: int = 64, nuisance: float = 0.5, noise: float = 0.3, seed: int = 0
) -> PlantedPairs:
    """Pairs ±u apart along a unit vector u; `nuisance` is the sd along one other direction, `noise` along all.

    >>> planted_pairs(n_pairs=10).positive.shape
    torch.Size([10, 1, 64])
    """
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    u = F.normalize(drawn(d_model), dim=0)
    other = drawn(d_model)
    w = F.normalize(other - (other @ u) * u, dim=0)
    shared = drawn(n_pairs, d_model)
    sides = [
        shared + sign * u + nuisance * drawn(n_pairs, 1) * w + noise * drawn(n_pairs, d_model)
        for sign in (1, -1)
    ]
    return PlantedPairs(sides[0][:, None], sides[1][:, None], u)


def planted_direction(*, d_model: int = 48, seed: int = 0) -> Model:
    """A network that reads sentiment along one direction and says `yes` by it; the direction is `W_U` of `yes`.

    >>> model = planted_direction()
    >>> logits = model.logits("the film was good3")[0, -1]
    >>> bool(logits[model.token("yes")] > 0)
    True
    """
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="it"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    generator = torch.Generator().manual_seed(seed)
    v = 2 * F.normalize(torch.randn(d_model, generator=generator), dim=0)
    own = torch.randn(len(WORDS), d_model, generator=generator)
    own -= torch.outer(own @ v, v) / (v @ v)
    embedding = 0.5 * own
    for words, sign in ((GOOD, 1.0), (BAD, -1.0)):
        for word in words:
            embedding[WORDS.index(word)] += sign * v
    module = ToyTransformer(
        n_layers=1,
        d_model=d_model,
        n_heads=1,
        d_vocab=len(WORDS),
        n_ctx=32,
        positions="shortformer",
        seed=seed,
    )
    attention, unembedding = module.blocks[0].attn, torch.zeros(len(WORDS), d_model)
    unembedding[WORDS.index("yes")] = v
    with torch.no_grad():
        module.embed.weight.copy_(embedding)
        module.unembed.weight.copy_(unembedding)
        for projection in (attention.q_proj, attention.k_proj):
            projection.weight.zero_()
        for projection in (attention.v_proj, attention.o_proj):
            projection.weight.copy_(torch.eye(d_model))
    return Model(module.requires_grad_(False), tokenizer=tokenizer, bos=0, name=f"planted-direction-{seed}")


def planted_texts() -> Pairs:
    """Texts of the network that differ in one word's sentiment; the answer the concept speaks for is `yes`."""
    frames = ["the {} was {}", "so {} is {} ."]
    found = [
        (frame.format(thing, good), frame.format(thing, bad), good)
        for frame in frames
        for thing in THINGS[:2]
        for good, bad in zip(GOOD, BAD, strict=True)
    ]
    positive, negative, groups = zip(*found, strict=True)
    questions = tuple((f"the {thing} was it", " yes", " no") for thing in THINGS)
    return Pairs("planted", positive, negative, groups, "sentiment", questions)
