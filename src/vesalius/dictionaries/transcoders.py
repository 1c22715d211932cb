"""Dictionaries that read at some sites and write at others, by the loop of the autoencoders."""

from pathlib import Path

from vesalius.dictionaries.rows import Rows
from vesalius.dictionaries.sparse import SparseDictionary
from vesalius.dictionaries.train import Watch, fit_many
from vesalius.dictionaries.training import Plan
from vesalius.dictionaries.variants import Variant
from vesalius.errors import VesaliusError


def fit_transcoder(
    rows: Rows,
    *,
    latents: int,
    activation: str | Variant = "topk(k=32)",
    skip: bool = False,
    steps: int,
    batch: int = 4096,
    lr: float | None = None,
    seed: int = 0,
    to: str | Path | None = None,
    device: str = "cpu",
    watch: Watch | None = None,
) -> SparseDictionary:
    """What the rows' second site is, from the first, as an MLP's output from its input.

    Dunefsky et al. 2024 (arXiv 2406.11944); with `skip`, a linear map leads past the latents (Paulo et al. 2025,
    arXiv 2501.18823). Raises VesaliusError if the rows are not of two sites, and as `fit_sae`.
    """
    if len(rows.sites) != 2:
        raise VesaliusError(
            f"a transcoder was given rows of {', '.join(rows.sites)}; expected two, the one read and the one written"
        )
    plan = Plan(latents, activation, lr, seed=seed, reads=(0,), writes=(1,), skip=skip)
    return fit_many(rows, {"": plan}, steps=steps, batch=batch, seed=seed, to=to, device=device, watch=watch)[
        ""
    ]


def fit_crosscoder(
    rows: Rows,
    *,
    latents: int,
    activation: str | Variant = "april(l1=5.0)",
    steps: int,
    batch: int = 4096,
    lr: float | None = None,
    seed: int = 0,
    to: str | Path | None = None,
    device: str = "cpu",
    watch: Watch | None = None,
) -> SparseDictionary:
    """One dictionary of all the rows' sites together: layers of a model, or the same site of several models.

    Lindsey et al. 2024 (transformer-circuits.pub/2024/crosscoders). Each site is scaled by itself; the dictionary
    reads and writes the sites side by side, in the order of the rows.
    """
    every = tuple(range(len(rows.sites)))
    plan = Plan(latents, activation, lr, seed=seed, reads=every, writes=every)
    return fit_many(rows, {"": plan}, steps=steps, batch=batch, seed=seed, to=to, device=device, watch=watch)[
        ""
    ]


def fit_cross_layer_transcoder(
    rows: Rows,
    *,
    latents: int,
    activation: str | Variant = "topk(k=32)",
    steps: int,
    batch: int = 4096,
    lr: float | None = None,
    seed: int = 0,
    to: str | Path | None = None,
    device: str = "cpu",
    watch: Watch | None = None,
) -> SparseDictionary:
    """Latents that read the input of one layer and write to the outputs of that and all later ones.

    Ameisen et al. 2025 (transformer-circuits.pub/2025/attribution-graphs). The rows' sites are the inputs of the
    layers in order, then their outputs; the `latents` are shared out evenly among the layers, and the matrices are
    whole, with zeros where a latent neither reads nor writes. Raises VesaliusError if the number of sites is odd.
    """
    layers, odd = divmod(len(rows.sites), 2)
    if odd:
        raise VesaliusError(
            f"{len(rows.sites)} sites were given; expected as many inputs as outputs, inputs first"
        )
    inputs, outputs = tuple(range(layers)), tuple(range(layers, 2 * layers))
    plan = Plan(latents, activation, lr, seed=seed, reads=inputs, writes=outputs, forward=True)
    return fit_many(rows, {"": plan}, steps=steps, batch=batch, seed=seed, to=to, device=device, watch=watch)[
        ""
    ]
