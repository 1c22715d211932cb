"""What is compared: each case runs ours and the peer's on the same weights and returns what must agree.

The network is GPT-2 small with random weights (nothing is downloaded), or the same with few dimensions where the
cost of Python, not of arithmetic, is the question. A side is a function `() -> callable`: what it builds first is
not timed, what it returns is.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

import vesalius as vs
from vesalius.branches import trunks
from vesalius.methods.circuits.activation_patching import Pair
from vesalius.weights.circuits import full_ov
from vesalius.weights.composition import composition_matrix
from vesalius.weights.copying import copying_eigenvalues

Side = Callable[[], Callable[[], Tensor]]
CLASSIC = [
    f"{role}@*" for role in ["resid_pre", "resid_mid", "resid_post", "q", "k", "v", "pattern", "z", "mlp_out"]
]


@cache
def gpt2(width: int = 768) -> GPT2LMHeadModel:
    """GPT-2 small, or a narrow one, with seeded random weights; biases and norms random too."""
    generator = torch.Generator().manual_seed(0)
    module = GPT2LMHeadModel(
        GPT2Config(n_embd=width, bos_token_id=0, eos_token_id=0, attn_implementation="sdpa")
    ).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(
                torch.randn(parameter.shape, generator=generator) * (0.02 if parameter.dim() > 1 else 0.1)
            )
    return module


@cache
def ours(width: int = 768) -> vs.Model:
    return vs.Model(gpt2(width), name="gpt2-small-random")


@cache
def peer(width: int = 768):
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    module = GPT2LMHeadModel(
        GPT2Config(n_embd=width, bos_token_id=0, eos_token_id=0, attn_implementation="eager")
    ).eval()
    module.load_state_dict(gpt2(width).state_dict())
    return build_bridge_from_module(module, "GPT2LMHeadModel", hf_config=module.config)


def ids(batch: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 50257, (batch, length), generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------------ record the residual


def record_residual() -> Callable[[], Tensor]:
    model, tokens = ours(), ids(4, 64)

    def run() -> Tensor:
        with vs.record(model, "resid_post@*"):
            return model(tokens).logits

    return run


def plain_forward() -> Callable[[], Tensor]:
    module, tokens = gpt2(), ids(4, 64)
    return lambda: module(tokens).logits


# ----------------------------------------------------------------------------------------------- record what is classic


def record_classic(width: int, batch: int, length: int) -> Side:
    def side() -> Callable[[], Tensor]:
        model, tokens = ours(width), ids(batch, length)

        def run() -> Tensor:
            with vs.record(model, CLASSIC) as acts:
                model(tokens)
            run.kept = acts
            return acts["pattern@11"]

        return run

    return side


def run_with_cache(width: int, batch: int, length: int) -> Side:
    def side() -> Callable[[], Tensor]:
        bridge, tokens = peer(width), ids(batch, length)

        def run() -> Tensor:
            _, cache = bridge.run_with_cache(tokens)
            run.kept = cache
            return cache["blocks.11.attn.hook_pattern"]

        return run

    return side


# ------------------------------------------------------------------------------------------------------- patch sweep

LENGTH = 12


def clean_and_corrupted() -> tuple[Tensor, Tensor, int, int]:
    """Two prompts that differ everywhere; answer and foil are the tokens whose logits differ most between them."""
    clean, corrupted = ids(1, LENGTH, 1), ids(1, LENGTH, 2)
    with torch.no_grad():
        moved = gpt2()(clean).logits[0, -1] - gpt2()(corrupted).logits[0, -1]
    return clean, corrupted, int(moved.argmax()), int(moved.argmin())


def our_sweep() -> Callable[[], Tensor]:
    model, (clean, corrupted, answer, foil) = ours(), clean_and_corrupted()
    prompts = torch.cat([corrupted, clean])

    def run() -> Tensor:
        pair = Pair(*trunks(model, prompts), answer=answer, foil=foil)
        low, high = pair.difference(pair.base.end), pair.difference(pair.source.end)
        return (pair.residual() - low) / (high - low)

    return run


def peer_sweep() -> Callable[[], Tensor]:
    from transformer_lens import patching

    bridge, (clean, corrupted, answer, foil) = peer(), clean_and_corrupted()

    def difference(logits: Tensor) -> Tensor:
        return logits[0, -1, answer] - logits[0, -1, foil]

    def run() -> Tensor:
        clean_logits, cache = bridge.run_with_cache(clean)
        low, high = difference(bridge(corrupted)), difference(clean_logits)
        return patching.get_act_patch_resid_pre(
            bridge, corrupted, cache, lambda logits: (difference(logits) - low) / (high - low)
        )

    return run


# -------------------------------------------------------------------------------------------------------- composition


def our_composition() -> Callable[[], Tensor]:
    model = ours()
    return lambda: composition_matrix(model, "K", norm="ignore")


def peer_composition() -> Callable[[], Tensor]:
    bridge = peer()

    def run() -> Tensor:
        scores = bridge.all_composition_scores("K")
        return scores if isinstance(scores, Tensor) else scores.scores

    return run


# -------------------------------------------------------------------------------------------------------- eigenvalues


def our_eigenvalues() -> Callable[[], Tensor]:
    model = ours()
    return lambda: copying_eigenvalues(model, norm="ignore").abs().sum(-1)


def peer_eigenvalues() -> Callable[[], Tensor]:
    bridge = peer()

    def run() -> Tensor:
        from transformer_lens import FactoredMatrix

        rows = []
        for layer in range(12):
            ov = FactoredMatrix(bridge.blocks[layer].attn.W_V, bridge.blocks[layer].attn.W_O)
            rows.append((bridge.W_E @ ov @ bridge.W_U).eigenvalues.abs().sum(-1))
        return torch.stack(rows)

    return run


# -------------------------------------------------------------------------------------------------- skip-trigram top-k


def our_top_k() -> Callable[[], Tensor]:
    circuit = full_ov(ours(), 5, 3, norm="ignore")
    return lambda: circuit.top_k(8).values


def bare_gemm() -> Callable[[], Tensor]:
    """The machine's own rate on this shape: the same product in row blocks into one buffer, and nothing else."""
    circuit = full_ov(ours(), 5, 3, norm="ignore")
    left, right = circuit.left.contiguous(), circuit.right.contiguous()
    buffer = torch.empty(512, right.shape[1])

    def run() -> Tensor:
        for start in range(0, len(left), 512):
            rows = left[start : start + 512]
            torch.matmul(rows, right, out=buffer[: len(rows)])
        return torch.zeros(0)

    return run
