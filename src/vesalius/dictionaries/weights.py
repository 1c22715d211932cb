"""What is learned of a dictionary while it is learned, and the trained dictionary made of it."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize

from vesalius.dictionaries.sparse import SparseDictionary


@dataclass(eq=False)
class Weights:
    """The parameters; both matrices have one row for each latent."""

    encoder: Float[Tensor, "latent source"]
    b_enc: Float[Tensor, " latent"]
    decoder: Float[Tensor, "latent target"]
    b_dec: Float[Tensor, " target"]
    centre: Float[Tensor, " source"] | None
    """What is subtracted from what is read: `b_dec` itself where they are tied."""
    skip: Float[Tensor, "source target"] | None = None
    own: dict[str, Tensor] = field(default_factory=dict)
    """What a variant learns besides."""
    widths: tuple[int, ...] = ()
    """Of the sites that are written, one after the other."""
    reads: Bool[Tensor, "latent source"] | None = None
    """Where the encoder may differ from 0; None: everywhere."""
    writes: Bool[Tensor, "latent target"] | None = None

    def named(self) -> dict[str, Tensor]:
        """Every parameter once, by its name."""
        parts = {name: getattr(self, name) for name in ("encoder", "b_enc", "decoder", "b_dec", "skip")}
        if self.centre is not self.b_dec:
            parts["centre"] = self.centre
        return {name: part for name, part in (parts | self.own).items() if part is not None}

    def decoder_norms(self) -> Float[Tensor, " latent"]:
        """The length of what each latent writes, summed over the sites that it writes to."""
        return torch.stack([part.norm(dim=1) for part in self.decoder.split(self.widths, dim=1)]).sum(0)

    def masked(self) -> Iterator[tuple[Tensor, Bool[Tensor, "latent width"]]]:
        """The matrices that are kept at 0 somewhere, and where they are not."""
        for matrix, mask in ((self.encoder, self.reads), (self.decoder, self.writes)):
            if mask is not None:
                yield matrix, mask

    @torch.no_grad()
    def remove_parallel_gradient(self) -> None:
        """Take from the decoder's gradient what would change the length of a latent's vector."""
        grad = self.decoder.grad
        assert grad is not None
        along = torch.einsum("lt,lt->l", grad, self.decoder)
        grad.addcmul_(along[:, None], self.decoder, value=-1)

    @torch.no_grad()
    def normalise(self) -> None:
        """Give each latent's vector length 1."""
        self.decoder.div_(self.decoder.norm(dim=1, keepdim=True).clamp(min=1e-12))


def started(
    *,
    latents: int,
    sources: int,
    widths: tuple[int, ...],
    tied: bool,
    b_dec: Float[Tensor, " target"],
    centre: Float[Tensor, " source"] | None,
    own: dict[str, Tensor],
    length: float = 1.0,
    skip: bool = False,
    reads: Bool[Tensor, "latent source"] | None = None,
    writes: Bool[Tensor, "latent target"] | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> Weights:
    """Weights before the first step: decoder vectors in random directions of one length, biases 0.

    `tied`: the encoder starts as the decoder (of another site: its own random directions); else both start as the
    layers of PyTorch do, uniform in ±1/√(number of inputs).
    """
    generator = torch.Generator().manual_seed(seed)
    targets = sum(widths)

    def uniform(*shape: int, inputs: int) -> Tensor:
        return (2 * torch.rand(shape, generator=generator) - 1) / inputs**0.5

    def learned(tensor: Tensor) -> Tensor:
        return tensor.clone().to(device).requires_grad_()

    if tied:
        decoder = torch.randn(latents, targets, generator=generator)
        same = sources == targets and reads is None
        encoder = decoder if same else torch.randn(latents, sources, generator=generator)
    else:
        decoder = uniform(latents, targets, inputs=latents)
        encoder = uniform(latents, sources, inputs=sources)
    if reads is not None and writes is not None:
        encoder, decoder = encoder * reads, decoder * writes
        reads, writes = reads.to(device), writes.to(device)
    bias = learned(b_dec)
    return Weights(
        encoder=learned(length * normalize(encoder) if tied else encoder),
        b_enc=learned(torch.zeros(latents)),
        decoder=learned(length * normalize(decoder)),
        b_dec=bias,
        centre=None if centre is None else bias if centre is b_dec else learned(centre),
        skip=learned(torch.zeros(sources, targets)) if skip else None,
        own={name: learned(tensor) for name, tensor in own.items()},
        widths=widths,
        reads=reads,
        writes=writes,
    )


@dataclass(frozen=True, eq=False)
class Folded:
    """What a variant comes down to once trained: (x − centre) encoderᵀ + bias, where that exceeds the threshold."""

    encoder: Float[Tensor, "latent source"]
    bias: Float[Tensor, " latent"]
    threshold: Float[Tensor, " latent"]
    k: int | None = None


@torch.no_grad()
def dictionary_of(
    weights: Weights,
    folded: Folded,
    *,
    site: str,
    source: str,
    scale_in: Float[Tensor, " source"],
    scale_out: Float[Tensor, " target"],
    about: dict,
) -> SparseDictionary:
    """The trained dictionary in the units of the activations, each latent's vector of length 1.

    While it was learned, what is read was multiplied by `scale_in` and what is reconstructed by `scale_out`.
    """
    decoder = weights.decoder / scale_out
    lengths = decoder.norm(dim=1).clamp(min=1e-12)
    return SparseDictionary(
        site=site,
        W_enc=(folded.encoder * scale_in * lengths[:, None]).T.contiguous().cpu(),
        b_enc=(folded.bias * lengths).cpu(),
        W_dec=(decoder / lengths[:, None]).cpu(),
        b_dec=(weights.b_dec / scale_out).cpu(),
        threshold=(folded.threshold.clamp(min=0) * lengths).cpu(),
        k=folded.k,
        source=source,
        b_in=None if weights.centre is None else (weights.centre / scale_in).cpu(),
        W_skip=None if weights.skip is None else (scale_in[:, None] * weights.skip / scale_out).cpu(),
        about=about,
    )
