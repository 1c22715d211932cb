"""LoRRA: a low-rank adapter trained so that the network holds, unasked, what an instruction would make it hold.

Low-Rank Representation Adaptation of Zou et al. 2023 (Representation Engineering, arXiv 2310.01405). For every prompt
with its response, at each target layer, the target is h + α (h⁺ - h⁻) + β v: the plain activation, moved by the
difference that two instructions make, and by a reading vector if there is one. The loss is the distance to the target
on the tokens of the response, the mean over layers, and only the adapter is trained. Defaults are the published ones
for Llama 2 7B, but for its layers: every second one between a third and two thirds of the depth.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from vesalius.access import record
from vesalius.dictionaries.control_vector import ControlVector
from vesalius.errors import VesaliusError
from vesalius.model import Model

Row = tuple[list[int], list[int], list[int], int]
"""A prompt with its response: plain, after one instruction, after the other, and the length of the response."""


@dataclass(frozen=True, eq=False)
class Adapted:
    """The network with its adapter merged into the weights, and the loss of every step."""

    model: Model
    losses: list[float]


def lorra(
    model: Model,
    examples: Sequence[tuple[str, str]],
    *,
    towards: str,
    away: str,
    layers: Sequence[int] | None = None,
    vector: ControlVector | None = None,
    alpha: float = 5.0,
    beta: float = 0.0,
    rank: int = 8,
    lora_alpha: int = 16,
    dropout: float = 0.05,
    lr: float = 3e-4,
    batch: int = 16,
    steps: int = 70,
    longest: int = 64,
    seed: int = 0,
) -> Adapted:
    """Train the adapter on (prompt, response) pairs; `towards` and `away` are instructions with the prompt at {text}.

    Raises VesaliusError if peft is missing, the network is not one of transformers', an instruction has no {text}, or
    the loss becomes NaN.
    """
    peft = _peft()
    chosen = list(layers) if layers is not None else _middle(model.n_layers)
    rows = [_row(model, prompt, response, towards, away, longest=longest) for prompt, response in examples]
    if not rows:
        raise VesaliusError("lorra was given no examples; expected (prompt, response) pairs")
    module, names = copy.deepcopy(model.module), _projections(model)
    config = peft.LoraConfig(
        r=rank, lora_alpha=lora_alpha, lora_dropout=dropout, target_modules=names, task_type="CAUSAL_LM",
        layers_to_transform=list(range(max(chosen) + 1)),
        fan_in_fan_out=names == ["c_attn"],
    )  # fmt: skip
    with torch.random.fork_rng(
        devices=[]
    ):  # the adapter is drawn by torch's own generator, and so is its dropout
        torch.random.manual_seed(seed)
        adapter = peft.get_peft_model(module, config)
        edited = Model(module, tokenizer=model.tokenizer, bos=model.bos, architecture=model.architecture)
        trained = [weight for weight in adapter.parameters() if weight.requires_grad]
        optimiser = torch.optim.AdamW(trained, lr=lr, weight_decay=0.0)
        generator, losses = torch.Generator().manual_seed(seed), []
        for step in range(steps):
            drawn = torch.randint(len(rows), (min(batch, len(rows)),), generator=generator).tolist()
            adapter.train()
            loss = torch.stack(
                [_distance(model, edited, rows[n], chosen, vector, alpha=alpha, beta=beta) for n in drawn]
            ).mean()
            if not loss.isfinite():
                raise VesaliusError(
                    f"the loss of step {step} is NaN or infinite; a smaller alpha or lr may help"
                )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
    merged = adapter.merge_and_unload().eval().requires_grad_(False)
    return Adapted(
        Model(
            merged,
            tokenizer=model.tokenizer,
            bos=model.bos,
            architecture=model.architecture,
            name=f"{model.name}+lorra",
        ),
        losses,
    )


def _distance(
    model: Model,
    edited: Model,
    row: Row,
    layers: list[int],
    vector: ControlVector | None,
    *,
    alpha: float,
    beta: float,
) -> Float[Tensor, ""]:
    """The mean distance of the adapted activations from the target over layers and the response's tokens."""
    plain, plus, minus, length = row
    sites = [f"resid_post@{layer}" for layer in layers]
    with torch.no_grad():
        h, up, down = (_response(model, ids, sites, length) for ids in (plain, plus, minus))
        target = h + alpha * (up - down)
        if vector is not None:
            target = target + beta * torch.stack([vector.directions[layer] for layer in layers])[:, None].to(
                h
            )
    return (_response(edited, plain, sites, length, gradients=True) - target).norm(dim=-1).mean()


def _response(
    model: Model, ids: list[int], sites: list[str], length: int, *, gradients: bool = False
) -> Float[Tensor, "layer token d_model"]:
    with record(model, sites, stop=True, gradients=gradients) as acts:
        model(torch.tensor([ids], device=model.device))
    return torch.stack([acts[site][0, -length:] for site in sites])


def _row(model: Model, prompt: str, response: str, towards: str, away: str, *, longest: int) -> Row:
    for template in (towards, away):
        if template.count("{text}") != 1:
            raise VesaliusError(
                f"the instruction '{template}' has no place for the prompt; expected one {{text}}"
            )
    begun = [
        model.tokens(text)[0].tolist()
        for text in (prompt, *(t.replace("{text}", prompt) for t in (towards, away)))
    ]
    said = model.tokens(prompt + response)[0].tolist()[len(begun[0]) :][:longest]
    if not said:
        raise VesaliusError(f"the response {response!r} adds no token to its prompt; expected at least one")
    return begun[0] + said, begun[1] + said, begun[2] + said, len(said)


def _projections(model: Model) -> list[str]:
    """The attention projections by the names transformers gives them, of which LoRA takes queries and values."""
    names = {name.rpartition(".")[2] for name, _ in model.module.named_modules()}
    for known in (["q_proj", "v_proj"], ["c_attn"], ["query_key_value"]):
        if set(known) <= names:
            return known
    raise VesaliusError(
        f"{model.name} has no attention projections that are known here; expected q_proj and v_proj"
    )


def _middle(n_layers: int) -> list[int]:
    return list(range(n_layers // 3, max(2 * n_layers // 3, n_layers // 3 + 1), 2))


def _peft():
    try:
        import peft
    except ImportError:
        raise VesaliusError(
            "LoRRA needs the peft package; install it with pip install 'vesalius[lora]'"
        ) from None
    return peft
