"""The card of a network of the zoo: how it was trained, and what we measured, beside an untrained twin.

Every number is taken on the weights as they are shipped. A twin is the same shape with its first weights; the
distribution over many twins is what a score of copying has to exceed.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from vesalius.architectures.toy import ToyTransformer
from vesalius.formats.checkpoints import read_checkpoint
from vesalius.recipes import measured
from vesalius.recipes.bigrams import bigram_divergence, pair_counts

# the repeated random tokens on which every card is measured
RANDOM_TEXT = {"length": 100, "rows": 32, "seed": 1}
INDUCTION = 0.5  # prefix matching from which a head that copies is called an induction head
PREVIOUS = 0.4  # mean attention one token back from which a head is called a previous-token head


def facts(model: ToyTransformer, rows: Int[Tensor, "row pos"], held_out: Int[Tensor, "text pos"]) -> dict:
    """What a network of this depth is there to show."""
    found = {
        "held_out_loss": measured.mean_loss(model, held_out),
        "uniform_loss": float(torch.tensor(model.shape["d_vocab"]).log()),
    }
    if model.shape["n_layers"] == 0:
        return found | bigram_facts(model, pair_counts(rows, model.shape["d_vocab"]))
    ids = measured.repeated(model.shape["d_vocab"], **RANDOM_TEXT)
    first, second = measured.repeated_loss(model, ids)
    found |= {
        "repeated_random_tokens": RANDOM_TEXT | {"first_loss": first, "second_loss": second},
        "previous_token": rounded(measured.previous_token(model, ids)),
        "copying": copying_facts(model),
    }
    return found | induction_facts(model, ids) if model.shape["n_layers"] == 2 else found


@torch.no_grad()
def bigram_facts(model: ToyTransformer, counts: Tensor) -> dict:
    """Divergence from the bigrams of the training text, in nats; 0 is a perfect table."""
    twin = ToyTransformer(**model.shape, seed=1)
    share = counts / counts.sum()
    entropy = -torch.where(counts > 0, share * (share / share.sum(1, keepdim=True)).log(), 0.0).sum()
    return {
        "bigram_divergence": bigram_divergence(model, counts).item(),
        "bigram_divergence_of_twin": bigram_divergence(twin, counts).item(),
        "bigram_entropy": entropy.item(),
    }


def copying_facts(model: ToyTransformer, *, twins: int = 128) -> dict:
    """Copying scores, and the score that one head of an untrained network in a thousand exceeds."""
    scores = measured.copying(model)
    null = torch.cat(
        [measured.copying(ToyTransformer(**model.shape, seed=1 + twin)).flatten() for twin in range(twins)]
    )
    bar = null.quantile(0.999).item()
    return {
        "scores": rounded(scores),
        "significant": (scores > bar).sum(1).tolist(),
        "twins": {
            "heads": len(null),
            "mean": null.mean().item(),
            "sd": null.std().item(),
            "quantile_999": bar,
        },
    }


def induction_facts(model: ToyTransformer, ids: Int[Tensor, "batch pos"]) -> dict:
    """Which heads match prefixes, which layer-0 heads they compose with, and what silencing those does."""
    matching, previous = measured.prefix_matching(model, ids), measured.previous_token(model, ids)
    best = int(matching[1].argmax())
    helpers = [head for head, share in enumerate(previous[0].tolist()) if share >= PREVIOUS]
    twin = ToyTransformer(**model.shape, seed=1)
    unrelated = measured.k_composition(twin)

    def silenced(heads: list[int]) -> float:
        return measured.prefix_matching(measured.without(model, [(0, head) for head in heads]), ids)[
            1, best
        ].item()

    return {
        "prefix_matching": rounded(matching),
        "prefix_matching_of_twin": measured.prefix_matching(twin, ids).max().item(),
        "induction_heads": [
            [1, head] for head, share in enumerate(matching[1].tolist()) if share >= INDUCTION
        ],
        "previous_token_heads": [[0, head] for head in helpers],
        "k_composition": rounded(measured.k_composition(model)),
        "k_composition_of_twin": {"mean": unrelated.mean().item(), "sd": unrelated.std().item()},
        "ablation": {
            "induction_head": [1, best],
            "prefix_matching": matching[1, best].item(),
            "without_previous_token_heads": silenced(helpers),
            "without_each_layer_0_head": [
                round(silenced([head]), 4) for head in range(model.shape["n_heads"])
            ],
        },
    }


def checkpoint_entry(file: Path, shaped: ToyTransformer, held_out: Int[Tensor, "text pos"]) -> dict:
    """One checkpoint as it is shipped, quantised: its loss, and how far induction has come."""
    model = ToyTransformer(**shaped.shape)
    model.load_state_dict(read_checkpoint(file))
    ids = measured.repeated(model.shape["d_vocab"], **RANDOM_TEXT)
    return {
        "step": int(file.stem.removeprefix("step-")),
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "held_out_loss": measured.mean_loss(model, held_out[:64]),
        "prefix_matching": measured.prefix_matching(model, ids).max().item(),
        "second_loss": measured.repeated_loss(model, ids)[1],
    }


def curves(log: Path, *, per_step: int, seen: str = "tokens_seen") -> dict:
    """The log in short: steps, what was seen, seconds, about a hundred training losses and all held-out numbers."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    train = [[line["step"], round(line["train"], 4)] for line in lines if "train" in line]
    found = {
        "steps": lines[-1]["step"],
        seen: lines[-1]["step"] * per_step,
        "seconds": lines[-1]["seconds"],
        "train": train[:: -(-len(train) // 140)],
    }
    for name in ("held_out", "held_out_accuracy", "legal_share", "above_floor"):
        numbers = [[line["step"], line[name]] for line in lines if name in line]
        found |= {name: numbers} if numbers else {}
    watched = [line for line in lines if "second_r" in line]
    if watched:
        found["repeated_second_loss"] = [[line["step"], line["second_r"]] for line in watched]
        found["prefix_matching"] = [
            [line["step"], max(map(max, line["prefix_matching"]))] for line in watched
        ]
    return found


def write_card(card: dict, file: Path) -> None:
    """JSON that a person can read: lists of numbers and short entries on one line, five decimals."""
    tidy = json.loads(json.dumps(card), parse_float=lambda digits: round(float(digits), 5))
    file.write_text(laid_out(tidy) + "\n", encoding="utf-8")


def laid_out(node: object, indent: int = 0) -> str:
    flat = json.dumps(node, ensure_ascii=False)
    if len(flat) + indent <= 100 or not isinstance(node, (dict, list)) or "{" not in flat:
        return flat
    inner = "\n" + " " * (indent + 1)
    if isinstance(node, dict):
        parts = [f"{json.dumps(key)}: {laid_out(value, indent + 1)}" for key, value in node.items()]
        return "{" + inner + f",{inner}".join(parts) + "\n" + " " * indent + "}"
    return (
        "["
        + inner
        + f",{inner}".join(laid_out(value, indent + 1) for value in node)
        + "\n"
        + " " * indent
        + "]"
    )


def rounded(scores: Tensor) -> list[list[float]]:
    """A table of numbers in 0..1, at three digits."""
    return [[round(value, 3) for value in row] for row in scores.tolist()]
