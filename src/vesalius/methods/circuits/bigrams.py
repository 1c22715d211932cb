"""Bigrams: which next tokens a network's direct path predicts from a token alone.

Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"
(transformer-circuits.pub/2021/framework): past every head and MLP runs the path W_E W_U, which can only hold
statistics of pairs. A network without layers is this path and nothing else; in a deeper one it is one term,
the rest of the network correcting it, and it need not be a good bigram model (with tied embeddings it often
says the token itself).

1. Logits of a token are its embedding, through the final norm of that very vector, times W_U. So for zero
   layers they are the network's own, positions in the residual stream aside.
2. With a corpus they are compared with its bigrams, each token weighted as often as it occurs: KL(corpus ‖
   path) in nats and total variation (0 the same table, 1 nothing in common), over pairs seen. The interval is
   a bootstrap over chunks of the corpus. Controls are the corpus's own unigrams, and the path of a
   random-init twin.
3. A finite corpus has bigrams of its own by chance, so even the truth is some nats away from it. How many is
   measured on a corpus of the same tokens, each followed by draws from the path. What is left is the gap: the
   path is not the table of this corpus, because d_model allows too low a rank, or because it was trained on
   another.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vesalius.data.text import heldout_text, token_chunks
from vesalius.errors import VesaliusError
from vesalius.method import method, progress
from vesalius.metrics import bootstrap, entropy
from vesalius.model import Model
from vesalius.result import Headline, Result

if TYPE_CHECKING:
    from vesalius.figures import Figure

RECOVERED = 0.01
"""KL in nats, beyond what sampling makes, below which the table is called the corpus's own."""


@dataclass(frozen=True)
class Bigrams(Result):
    """Top next tokens of some tokens and, with a corpus, how far the whole table is from its bigrams."""

    sources: Int[Tensor, " source"]
    next_tokens: Int[Tensor, "source rank"]
    log_probs: Float[Tensor, "source rank"]
    words: dict[str, str]
    """Token ids in the tables, as text."""
    entropies: Float[Tensor, " source"]
    """Of the predicted distribution, in nats."""
    twin_entropies: Float[Tensor, " source"]
    zero_layers: bool
    divergence: dict[str, float]
    """With a corpus: kl, low, high, tv, of the path; unigram and twin kl and tv; sampling, tokens, pairs."""
    predicted: Float[Tensor, " pair"]
    """Log-probabilities of pairs drawn from the corpus, and below what the corpus itself says of them."""
    empirical: Float[Tensor, " pair"]
    choices: dict[str, str]

    def headlines(self) -> list[Headline]:
        path = "the network" if self.zero_layers else "the direct path, one term of the network"
        if not self.divergence:
            mean, control = self.entropies.mean().item(), self.twin_entropies.mean().item()
            return [
                Headline("entropy of the next token, nats", mean, control, note=f"{path}; no corpus given")
            ]
        d = self.divergence
        gap = max(0.0, d["kl"] - d["sampling"])
        control = min(d["unigram_kl"], d["twin_kl"])
        beats = f"unigrams {d['unigram_kl']:.3f}, random twin {d['twin_kl']:.3f}; {path}"
        return [
            Headline(
                "KL from the corpus's bigrams, nats",
                d["kl"],
                control,
                (d["low"], d["high"]),
                d["high"] < control,
                beats,
            ),
            Headline(
                "total variation from the corpus's bigrams",
                d["tv"],
                min(d["unigram_tv"], d["twin_tv"]),
                evidence=d["tv"] < min(d["unigram_tv"], d["twin_tv"]),
                note="mean over tokens as they occur",
            ),
            Headline(
                f"the corpus's bigrams recovered: gap below {RECOVERED} nats",
                gap,
                evidence=gap < RECOVERED,
                note=f"less the {d['sampling']:.3f} that sampling makes; rank {self.choices['rank']}",
            ),
        ]

    def figure(self) -> "Figure":
        from vesalius.figures import group, scatter, table

        columns = ["token", *(f"next {rank + 1}" for rank in range(self.next_tokens.shape[1]))]
        rows = [
            [self.words[str(source)]]
            + [
                {"text": f"{self.words[str(n)]} {100 * p:.1f}%", "value": p}
                for n, p in zip(following, likely)
            ]
            for source, following, likely in zip(
                self.sources.tolist(), self.next_tokens.tolist(), self.log_probs.exp().tolist()
            )
        ]
        drawn = [table(columns, rows, title="What follows each token, by the direct path")]
        if self.divergence:
            drawn.append(
                scatter(
                    self.empirical,
                    self.predicted,
                    title="Pairs of the corpus",
                    x_label="log-probability in the corpus",
                    y_label="log-probability by the path",
                    references=[("diagonal", 0.0, "the same")],
                )
            )
        caption = "; ".join(f"{key}: {value}" for key, value in self.choices.items())
        return group(drawn, title="Bigrams", caption=caption)


@method(needs=("tokens",))
def bigrams(
    model: Model,
    *,
    sources: list[str] | None = None,
    top: int = 10,
    corpus: str | None = None,
    chunks: int = 400,
    seed: int = 0,
) -> Bigrams:
    """Tabulate the next tokens that the direct path predicts; with a corpus, measure it against its bigrams.

    `sources` are single tokens; without them the most decided of 2,000 tokens are shown. `corpus` is a text
    file, or "heldout" for the sample that ships with the zoo; of a model without tokenizer, a file of token
    ids. At most `chunks` chunks of it are read. Raises for a source that is not one token or a missing file.

    >>> from vesalius.testbed import random_attn
    >>> bigrams(random_attn(n_layers=0), sources=["#3"]).next_tokens.shape
    torch.Size([1, 10])
    """
    generator = torch.Generator().manual_seed(seed)
    twin = model.random_twin(seed)
    if sources is None:
        some = torch.randperm(model.d_vocab, generator=generator)[:2000]
        decided = torch.cat([entropy(_log_probs(model, part).exp()) for part in some.split(256)])
        chosen = some[decided.argsort()[:30]]
    else:
        chosen = torch.tensor([model.token(source) for source in sources])
    table = _log_probs(model, chosen)
    log_probs, following = table.topk(min(top, model.d_vocab))
    divergence, predicted, empirical = {}, torch.zeros(0), torch.zeros(0)
    if corpus is not None:
        divergence, predicted, empirical = _against(model, twin, _read(model, corpus, chunks), seed)
    shown = sorted({*chosen.tolist(), *following.flatten().tolist()})
    norm = "none" if not model.has("norm_final") else "final norm of each embedding, its epsilon left out"
    return Bigrams(
        sources=chosen,
        next_tokens=following,
        log_probs=log_probs,
        words=dict(zip(map(str, shown), model.strings(shown))),
        entropies=entropy(table.exp()),
        twin_entropies=entropy(_log_probs(twin, chosen).exp()),
        zero_layers=model.n_layers == 0,
        divergence=divergence,
        predicted=predicted,
        empirical=empirical,
        choices={
            "path": "direct: embedding → unembedding",
            "norm": norm,
            "positions": "left out",
            "corpus": corpus or "none",
            "rank": f"at most {min(model.d_model, model.d_vocab)} of {model.d_vocab}",
        },
    )


def _log_probs(model: Model, tokens: Int[Tensor, " token"]) -> Float[Tensor, "token d_vocab"]:
    """Log-probabilities of the next token by the direct path."""
    x = model.weight("W_E")[tokens.to(model.device)].float()
    if model.has("norm_final"):
        x = x - x.mean(-1, keepdim=True) if model.architecture.norm == "layer" else x
        x = x / x.square().mean(-1, keepdim=True).sqrt() * model.weight("norm_final").float()
        x = x + model.weight("norm_final_bias").float() if model.has("norm_final_bias") else x
    logits = x @ model.weight("W_U").float()
    return (logits + model.weight("b_U").float() if model.has("b_U") else logits).log_softmax(-1).cpu()


def _against(
    model: Model, twin: Model, rows: Int[Tensor, "chunk pos"], seed: int
) -> tuple[dict[str, float], Float[Tensor, " pair"], Float[Tensor, " pair"]]:
    """How far path, unigrams and the twin's path are from the corpus; then 2,000 pairs, to be drawn."""
    coded = rows[:, :-1] * model.d_vocab + rows[:, 1:]
    pairs, which, counts = torch.unique(coded, return_inverse=True, return_counts=True)
    first, second = pairs // model.d_vocab, pairs % model.d_vocab
    n = counts.sum().item()
    share, times = counts.double() / n, _summed(counts, first, model.d_vocab)
    empirical = (counts / times[first]).log()
    found = {
        "unigram": (_summed(counts, second, model.d_vocab)[second] / n).log(),
        "": _of_pairs(model, first, second),
        "twin": _of_pairs(twin, first, second),
    }
    generator = torch.Generator().manual_seed(seed)
    summary = {"tokens": n, "pairs": len(pairs), "sampling": _sampling(model, times, generator)}
    for name, log_prob in found.items():
        unseen = (1 - _summed(log_prob.exp(), first, model.d_vocab)).clamp(min=0)
        apart = (times[first] / n * (log_prob.exp() - empirical.exp()).abs()).sum() + (
            times / n * unseen
        ).sum()
        summary[f"{name}_kl".strip("_")] = (share * (empirical - log_prob)).sum().item()
        summary[f"{name}_tv".strip("_")] = apart.item() / 2
    summary["low"], summary["high"] = bootstrap((empirical - found[""])[which].mean(1), seed=seed)
    drawn = torch.multinomial(share, min(2000, len(pairs)), generator=generator)
    return summary, found[""][drawn].float(), empirical[drawn].float()


def _summed(values: Tensor, at: Int[Tensor, " pair"], size: int) -> Float[Tensor, " token"]:
    return torch.zeros(size, dtype=torch.double).index_add_(0, at, values.double())


def _of_pairs(
    model: Model, first: Int[Tensor, " pair"], second: Int[Tensor, " pair"]
) -> Float[Tensor, " pair"]:
    """Log-probability of each pair by the direct path; `first` rises."""
    parts = []
    for tokens in progress(first.unique().split(256), "bigrams"):
        here = (first >= tokens[0]) & (first <= tokens[-1])
        parts.append(_log_probs(model, tokens)[torch.searchsorted(tokens, first[here]), second[here]])
    return torch.cat(parts).double()


def _sampling(model: Model, times: Float[Tensor, " token"], generator: torch.Generator) -> float:
    """KL to the path of a corpus in which its tokens are followed by draws from the path itself."""
    total = 0.0
    for tokens in progress(times.nonzero()[:, 0].split(256), "draws from the path"):
        for log_probs, count in zip(_log_probs(model, tokens), times[tokens].int().tolist()):
            drawn = torch.multinomial(log_probs.exp(), count, replacement=True, generator=generator)
            following, often = drawn.unique(return_counts=True)
            total += (often * ((often / count).log() - log_probs[following])).sum().item()
    return total / times.sum().item()


def _read(model: Model, corpus: str, chunks: int) -> Int[Tensor, "chunk pos"]:
    """Rows of at most 256 tokens of the corpus."""
    length = min(256, model.n_ctx)
    if corpus == "heldout":
        return token_chunks(model, heldout_text(), length=length, limit=chunks).cpu()
    path = Path(corpus)
    if not path.is_file():
        raise VesaliusError(f"corpus '{corpus}' is not a file; expected a text, or 'heldout'")
    if model.tokenizer is not None:
        return token_chunks(model, path, length=length, limit=chunks).cpu()
    words = path.read_text(encoding="utf-8").split()
    if len(words) < length or not all(word.isdecimal() and int(word) < model.d_vocab for word in words):
        raise VesaliusError(f"corpus '{corpus}' should be {length} or more token ids below {model.d_vocab}")
    return torch.tensor([int(word) for word in words[: len(words) // length * length]]).reshape(-1, length)[
        :chunks
    ]
