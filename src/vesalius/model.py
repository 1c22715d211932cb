"""A network to be opened: the untouched module, how to feed it, and the names of its parts."""

import copy
import hashlib
import re
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vesalius.access import Stopped, record, sites_of
from vesalius.architectures import Architecture, Shape, architecture_of
from vesalius.dictionaries import Dictionary, Feature
from vesalius.errors import VesaliusError, nearest
from vesalius.formats import Parts
from vesalius.networks.othello_gpt import board_size
from vesalius.preprocessing import Preprocessing
from vesalius.site import Site

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Prepare = Callable[[Any], Mapping[str, Any] | tuple]


class Model:
    """Any `nn.Module` as it is, with what is needed to run it on text or tensors and to name its parts.

    `prepare` turns inputs into the module's keyword arguments (a mapping) or positional ones (a tuple). Without
    it, text and token ids become `input_ids` for a known token architecture, and pixels in 0..1 go through the
    `preprocessing` of an image network; anything else is handed on.

    >>> from vesalius.architectures.toy import ToyTransformer
    >>> model = Model(ToyTransformer(n_layers=1, d_model=8, n_heads=2, d_vocab=5, n_ctx=4), name="tiny")
    >>> model.logits(torch.tensor([[0, 1, 2]])).shape
    torch.Size([1, 3, 5])
    """

    def __init__(
        self,
        module: nn.Module,
        prepare: Prepare | None = None,
        *,
        tokenizer: "Tokenizer | None" = None,
        bos: int | None = None,
        preprocessing: Preprocessing | None = None,
        labels: tuple[str, ...] = (),
        architecture: Architecture | None = None,
        name: str = "",
    ) -> None:
        self.module = module.eval()
        self.architecture = architecture or architecture_of(module)
        self.tokenizer = tokenizer
        self.bos = bos
        """The token every text begins with, or None if the tokenizer adds what it wants itself."""
        self.preprocessing = preprocessing
        """What makes a picture an input; with it the model takes pixels in 0..1, `[batch, channel, row, column]`."""
        self.labels = labels
        """The names of a classifier's classes, where they are known."""
        self.name = name or type(module).__name__
        self.prepare = prepare or self._prepare

    def __repr__(self) -> str:
        family = self.architecture.name if self.architecture else "unknown architecture"
        return f"Model({self.name}: {family}, {self.n_parameters:,} parameters)"

    def __call__(self, inputs: Any, **arguments: Any) -> Any:
        """The module's own output, exactly; None if a `record(stop=True)` block ended the forward early."""
        prepared = self.prepare(inputs)
        positional, named = ((), prepared) if isinstance(prepared, Mapping) else (prepared, {})
        try:
            return self.module(*positional, **named, **arguments)
        except Stopped:
            return None

    def logits(self, inputs: Any) -> Float[Tensor, "..."]:
        """The output as one tensor: logits `[batch, position, d_vocab]` of a language model.

        Raises VesaliusError if any logit is NaN or infinite.
        """
        output = self(inputs)
        logits = (
            output
            if isinstance(output, Tensor)
            else output["logits"]
            if isinstance(output, Mapping)
            else output[0]
        )
        if not torch.isfinite(logits).all():
            raise VesaliusError(
                f"{self.name} computes NaN or infinite logits on this input; expected finite numbers"
            )
        return logits

    # ---------------------------------------------------------------------------------------------------- its parts

    @cached_property
    def shape(self) -> Shape:
        """The sizes of a known architecture."""
        return self._known().shape(self.module)

    n_layers = property(lambda self: self.shape.n_layers)
    n_heads = property(lambda self: self.shape.n_heads)
    n_kv_heads = property(lambda self: self.shape.n_kv_heads)
    d_model = property(lambda self: self.shape.d_model)
    d_head = property(lambda self: self.shape.d_head)
    d_mlp = property(lambda self: self.shape.d_mlp)
    n_parameters = property(lambda self: sum(p.numel() for p in self.module.parameters()))
    device = property(lambda self: next(self.module.parameters()).device)
    dtype = property(lambda self: next(self.module.parameters()).dtype)

    @property
    def d_vocab(self) -> int:
        """How many tokens there are (classes, of a classifier)."""
        return self.shape.d_vocab

    @property
    def n_ctx(self) -> int:
        """How many tokens the network reads at most."""
        return self.shape.n_ctx

    @property
    def kinds(self) -> frozenset[str]:
        """What methods ask for: tokens, attention, causal, attention_only, no_norm, mlp, embedding, tokenizer; othello
        (its sizes are those of a player of it); images, conv.
        """
        kinds = {"tokenizer"} if self.tokenizer else set()
        kinds |= {"images"} if self.preprocessing else set()
        if self.architecture is None:
            return frozenset(kinds)
        has = {
            "tokens": self.architecture.inputs == "tokens" and self.has("W_U"),
            "attention": self.n_layers > 0 and "pattern" in self.architecture.sites,
            "causal": self.architecture.causal,
            "attention_only": self.architecture.inputs == "tokens" and self.d_mlp == 0,
            "no_norm": self.architecture.norm == "none",
            "mlp": self.n_layers > 0 and self.d_mlp > 0,
            "embedding": self.has("W_E"),
            "conv": "maps" in self.architecture.sites,
            "othello": self.tokenizer is None
            and board_size(self.shape.d_vocab, self.shape.n_ctx) is not None,
        }
        return frozenset(kinds | {kind for kind, present in has.items() if present})

    def has(self, role: str) -> bool:
        """Whether the architecture has weights of this role."""
        return role in self._known().weights

    def weight(self, role: str, layer: int | None = None) -> Tensor:
        """A weight in the row-vector layout, without gradient: `W_Q` [head, d_model, d_head], `W_U` [d_model, d_vocab].

        Raises VesaliusError for a role the architecture has not, or a layer out of range.
        """
        weights = self._known().weights
        if role not in weights:
            raise VesaliusError(
                f"{self.name} has no weight '{role}'; it has {', '.join(weights)}{nearest(role, weights)}"
            )
        if layer is not None and not 0 <= layer < self.n_layers:
            raise VesaliusError(f"{self.name} has no layer {layer}; expected 0 to {self.n_layers - 1}")
        return weights[role](self.module, 0 if layer is None else layer).detach()

    def random_twin(self, seed: int = 0) -> "Model":
        """The same network untrained: every matrix redrawn from N(0, its own sd), norm gains 1, biases 0.

        Batch norms take the statistics that smooth noise gives them in the redrawn network.
        """
        generator = torch.Generator().manual_seed(seed)
        gain = 1.0 - (self.architecture.gain_offset if self.architecture else 0.0)

        def redrawn(name: str, weight: Tensor) -> Tensor:
            if weight.dim() < 2:
                return torch.full_like(weight, 0.0 if name.endswith("bias") else gain)
            return torch.randn(weight.shape, generator=generator) * float(weight.float().std())

        return self._twin(redrawn, f"random twin {seed}", generator)

    def shuffled_twin(self, seed: int = 0) -> "Model":
        """The same network with the entries of each weight matrix permuted among themselves (Bricken et al. 2023).

        Vectors, which are biases and gains, stay. What is found in it is found without anything having been learnt
        but the sizes of the weights.
        """
        generator = torch.Generator().manual_seed(seed)

        def permuted(name: str, weight: Tensor) -> Tensor:
            if weight.dim() < 2:
                return weight
            return weight.flatten()[torch.randperm(weight.numel(), generator=generator)].view(weight.shape)

        return self._twin(permuted, f"shuffled twin {seed}", generator)

    def _twin(
        self, redrawn: Callable[[str, Tensor], Tensor], kind: str, generator: torch.Generator
    ) -> "Model":
        """A copy whose every parameter is what `redrawn` makes of its name and itself."""
        module = copy.deepcopy(self.module)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                parameter.copy_(redrawn(name, parameter.cpu()))
        twin = Model(
            module,
            None if self.prepare == self._prepare else self.prepare,
            tokenizer=self.tokenizer,
            bos=self.bos,
            preprocessing=self.preprocessing,
            labels=self.labels,
            architecture=self.architecture,
            name=f"{self.name} ({kind})",
        )
        norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d)]
        if norms and self.preprocessing is not None:
            _recalibrate(twin, norms, generator)
        return twin

    @cached_property
    def hash(self) -> str:
        """sha256 over the names, shapes, dtypes and bytes of all weights."""
        digest = hashlib.sha256()
        for name, tensor in self.module.state_dict().items():
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    # ------------------------------------------------------------------------------------------------------ features

    def feature(self, name: "str | Feature") -> Feature:
        """One unit by its address, `mixed3b[379]`, or as papers write it, `3b:379`; a direction is checked and kept.

        `FILE[12]` is a latent of the dictionary in that file. Raises VesaliusError for a site or a unit that the
        network does not have.
        """
        latent = re.fullmatch(r"(.+)\[(\d+)\]", name) if isinstance(name, str) else None
        if latent and ("/" in latent[1] or Path(latent[1]).suffix in (".safetensors", ".npz")):
            name = self.dictionary(latent[1])[int(latent[2])]
        short = re.fullmatch(r"(\S+):(\d+)", name) if isinstance(name, str) else None
        if short:
            name = f"{self._unabbreviated(short[1])}[{short[2]}]"
        feature = Feature.parse(name) if isinstance(name, str) else name
        if self.preprocessing is None:
            return feature
        width = self.map_shape(feature.site)[0]
        if feature.index is not None and feature.read is None and feature.index >= width:
            raise VesaliusError(
                f"'{feature}' is beyond the units of '{feature.site}' in {self.name}; expected 0 to {width - 1}"
            )
        if feature.read is not None:
            feature.vector(width)
        return feature

    def dictionary(self, given: "str | Path | Dictionary") -> "Dictionary":
        """A dictionary of a site of this network, opened if a file or a folder of it was named.

        Raises VesaliusError if the network has no such site, or one of another width.
        """
        from vesalius.formats.dictionaries import read_dictionary

        dictionary = read_dictionary(given) if isinstance(given, str | Path) else given
        if not isinstance(dictionary, Dictionary):
            raise VesaliusError(
                f"a {type(given).__name__} was given as a dictionary; expected one, or the file it is in"
            )
        sites_of(self, dictionary.site)
        return dictionary

    @torch.no_grad()
    def value_at(self, site: str, inputs: Tensor) -> Float[Tensor, "example *axes"]:
        """The value at one site; the forward ends there, so nothing can write into it and it is read without a copy.

        Pixels are brought to the network's own device and precision.
        """
        if inputs.is_floating_point():
            inputs = inputs.to(device=self.device, dtype=self.dtype)
        with record(self, site, stop=True, gradients=True) as acts:
            self(inputs)
        return acts[site]

    def site(self, name: str = "") -> str:
        """The canonical address of one site of an image network; its early-middle layer if `name` is empty.

        Raises VesaliusError if there is no such site, or none was named and the architecture has no usual one.
        """
        usual = self.architecture.default_site if self.architecture else ""
        if not (name or usual):
            raise VesaliusError(
                f"no site was named, and {self.name} has no usual one; name one of its modules"
            )
        address = str(Site.parse(self._unabbreviated(name) or usual))
        self.map_shape(address)
        return address

    def _unabbreviated(self, layer: str) -> str:
        """A layer as the network calls it, where papers have a shorter name."""
        return self.architecture.aliases.get(layer, layer) if self.architecture else layer

    def pixels(self, pictures: Any) -> Float[Tensor, "batch channel height width"]:
        """Pictures fitted to the network: files, a folder, a tensor of any size, whatever `open_images` takes."""
        from vesalius.data.images import open_images

        found = open_images(pictures)
        fitted = [self.pictures.fit(found[number]) for number in range(len(found))]
        return torch.stack(fitted).to(device=self.device, dtype=self.dtype)

    def layer_sites(self) -> list[str]:
        """The output of every layer in order: a convnet's maps by their names, a transformer's `resid_post@…`.

        Raises VesaliusError for an unknown architecture, whose layers have to be named.
        """
        sites = self._known().sites
        if "maps" in sites:
            names = self._known().layer_names(self.module)
            return [str(Site.parse(sites["maps"].format(name))) for name in names]
        return [f"resid_post@{layer}" for layer in range(self.n_layers)]

    def map_shape(self, site: str, size: tuple[int, int] | None = None) -> tuple[int, ...]:
        """What a site gives for one picture: `(channels, rows, columns)` of maps, `(width, positions)` of tokens.

        `size` is the picture's height and width, the network's own if left out.
        """
        height, width = size or self.pictures.size
        key = (str(Site.parse(site)), height, width)
        if key not in self._map_shapes:
            blank = torch.full((1, self.pictures.channels, height, width), 0.5, device=self.device)
            with torch.no_grad(), record(self, site, stop=True) as acts:
                self(blank.to(self.dtype))
            (value,) = acts.values()
            self._map_shapes[key] = tuple(value.shape[1:] if value.dim() == 4 else reversed(value.shape[1:]))
        return self._map_shapes[key]

    @cached_property
    def _map_shapes(self) -> dict[tuple[str, int, int], tuple[int, ...]]:
        return {}

    @property
    def pictures(self) -> Preprocessing:
        """What a picture is to the network: its `preprocessing`. Raises VesaliusError if it has none."""
        if self.preprocessing is None:
            raise VesaliusError(
                f"{self.name} has no preprocessing, so it is not known what a pixel means to it; "
                "give vs.Model(module, preprocessing=vs.Preprocessing(size=…, mean=…, sd=…))"
            )
        return self.preprocessing

    def _known(self) -> Architecture:
        if self.architecture is None:
            raise VesaliusError(
                f"{self.name} ({type(self.module).__name__}) is not a known architecture; its parts have no role names"
            )
        return self.architecture

    # --------------------------------------------------------------------------------------------------------- text

    def tokens(self, text: str | list[str]) -> Int[Tensor, "batch pos"]:
        """Token ids of a text, or of several texts of one length, each beginning with `bos` if there is one.

        Raises VesaliusError for an empty text, a missing tokenizer, or a text longer than the context.
        """
        rows = [self._encode(one) for one in ([text] if isinstance(text, str) else text)]
        if len({len(row) for row in rows}) > 1:
            raise VesaliusError(
                f"texts of {', '.join(str(len(r)) for r in rows)} tokens do not make one tensor; "
                "call the model on the list, which pads"
            )
        return torch.tensor(rows, device=self.device)

    def token(self, text: str) -> int:
        """The id of a text that is one single token; "#12" is token 12 of a model without tokenizer."""
        if (
            self.tokenizer is None
            and text.startswith("#")
            and text[1:].isdecimal()
            and int(text[1:]) < self.d_vocab
        ):
            return int(text[1:])
        ids = self._tokenizer().encode(text, add_special_tokens=False).ids
        bare = self._tokenizer().encode(text[1:], add_special_tokens=False).ids
        if len(ids) != 1 and text.startswith(" ") and self.strings(bare) == [text]:
            return bare[0]  # a tokenizer that itself puts a space before every text
        if len(ids) != 1:
            pieces = ", ".join(repr(piece) for piece in self.strings(ids))
            raise VesaliusError(
                f"'{text}' is {len(ids)} tokens ({pieces}); expected a single token"
                + (f"; the nearest is {self.strings(ids)[0]!r}" if ids else "")
            )
        return ids[0]

    def strings(self, ids: Int[Tensor, "pos"] | list[int]) -> list[str]:
        """Each token as text; `#12` for token 12 of a model without tokenizer."""
        numbers = ids.tolist() if isinstance(ids, Tensor) else ids
        if self.tokenizer is None:
            return [f"#{number}" for number in numbers]
        pieces = [self.tokenizer.id_to_token(number) or f"#{number}" for number in numbers]
        texts = [self.tokenizer.decode([number], skip_special_tokens=False) for number in numbers]
        spaced = [
            piece.replace("\N{LOWER ONE EIGHTH BLOCK}", " ") for piece in pieces
        ]  # SentencePiece's space
        return [
            space if space != piece else text if text and "\N{REPLACEMENT CHARACTER}" not in text else piece
            for piece, space, text in zip(pieces, spaced, texts, strict=True)
        ]

    def _tokenizer(self) -> "Tokenizer":
        if self.tokenizer is None:
            raise VesaliusError(f"{self.name} has no tokenizer; expected token ids instead of text")
        return self.tokenizer

    def _encode(self, text: str) -> list[int]:
        if not text:
            raise VesaliusError("the text is empty; expected at least one character")
        ids = self._tokenizer().encode(text, add_special_tokens=self.bos is None).ids
        return ids if self.bos is None else [self.bos, *ids]

    def _prepare(self, inputs: Any) -> Mapping[str, Any] | tuple:
        """Text, texts (padded on the right, with a mask) or ids `[batch, pos]` to a token model's arguments."""
        if self.preprocessing is not None and isinstance(inputs, Tensor | str | Path):
            pixels = inputs if isinstance(inputs, Tensor) else self.pixels(inputs)
            return (self.preprocessing.normalise(pixels),)
        if self.architecture is None or self.architecture.inputs != "tokens":
            return inputs if isinstance(inputs, Mapping | tuple) else (inputs,)
        if isinstance(inputs, Mapping):
            return inputs
        if isinstance(inputs, str):
            return self._checked(self.tokens(inputs), None)
        if isinstance(inputs, list) and inputs and isinstance(inputs[0], str):
            rows = [self._encode(text) for text in inputs]
            longest = max(map(len, rows))
            ids = torch.tensor(
                [row + [self.bos or 0] * (longest - len(row)) for row in rows], device=self.device
            )
            mask = torch.tensor(
                [[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=self.device
            )
            return self._checked(ids, None if bool(mask.all()) else mask)
        ids = torch.as_tensor(inputs, device=self.device)
        return self._checked(ids[None] if ids.dim() == 1 else ids, None)

    def _checked(self, ids: Tensor, mask: Tensor | None) -> Mapping[str, Any]:
        if ids.dim() != 2 or ids.is_floating_point() or ids.numel() == 0:
            raise VesaliusError(
                f"{self.name} was given a {ids.dtype} tensor of shape {tuple(ids.shape)}; "
                "expected token ids [batch, position]"
            )
        if ids.shape[1] > self.n_ctx:
            raise VesaliusError(f"the input is {ids.shape[1]} tokens; {self.name} reads at most {self.n_ctx}")
        largest, smallest = int(ids.max()), int(ids.min())
        if largest >= self.d_vocab or smallest < 0:
            wrong = largest if smallest >= 0 else smallest
            raise VesaliusError(
                f"token id {wrong} is out of range; {self.name} has ids 0 to {self.d_vocab - 1}"
            )
        return {"input_ids": ids} if mask is None else {"input_ids": ids, "attention_mask": mask}


def _recalibrate(
    model: Model, norms: list[nn.BatchNorm1d | nn.BatchNorm2d], generator: torch.Generator
) -> None:
    """Give batch norms the mean and variance of what reaches them when the network sees smooth noise."""
    coarse = torch.rand((8, model.pictures.channels, 16, 16), generator=generator)
    pixels = nn.functional.interpolate(coarse, size=model.pictures.size, mode="bilinear")
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        model(pixels.to(device=model.device, dtype=model.dtype))
    for norm in norms:
        norm.eval()


def load(
    name: str | Path,
    *,
    weights: str | Path | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    download: bool = False,
) -> Model:
    """Open a network by name: `zoo/NAME`, a published image network (`inceptionv1`), a folder, a `.gguf` file, a
    checkpoint of Othello-GPT, or a Hugging Face id.

    Nothing is fetched unless `download` says so; `weights` is the file of an image network if you have it. No file is
    executed: a pickle is refused. The weights are checked to be finite and the architecture's equations to hold.
    """
    from vesalius.equations import check_equations
    from vesalius.formats.weights import check_finite

    if not str(name):
        raise VesaliusError(
            "the name of the model is empty; expected zoo/NAME, a folder, a .gguf file or a hub id"
        )
    parts = _read(str(name), weights, dtype, download)
    check_finite(dict(parts.module.named_parameters()), name=parts.name)
    model = Model(
        parts.module.to(device=device, dtype=dtype),
        tokenizer=parts.tokenizer,
        bos=parts.bos,
        preprocessing=parts.preprocessing,
        labels=parts.labels,
        name=parts.name,
    )
    if model.architecture is not None:
        check_equations(model)
    return model


def _read(name: str, weights: str | Path | None, dtype: torch.dtype, download: bool) -> Parts:
    from vesalius.formats import (
        gguf,
        huggingface,
        llama2c,
        othello_checkpoints,
        other_libraries,
        published,
        zoo,
    )

    path = Path(name).expanduser()
    if name in published.NETWORKS:
        own = None if weights is None else Path(weights).expanduser()
        return published.read(name, weights=own, download=download)
    if name.partition(":")[0] in other_libraries.LIBRARIES:
        return other_libraries.read(name, download=download)
    if weights is not None:
        known = ", ".join(published.NETWORKS)
        raise VesaliusError(
            f"weights were given for '{name}', which is no published network; those are {known}"
        )
    if name.startswith("zoo/"):
        return zoo.read(name)
    if (path / "card.json").is_file():
        return zoo.read_folder(path)
    if path.suffix == ".gguf":
        return gguf.read(path, dtype=dtype)
    if path.suffix == ".bin":
        return llama2c.read(path, dtype=dtype)
    if path.suffix in othello_checkpoints.SUFFIXES and path.is_file():
        return othello_checkpoints.read(path)
    try:
        return huggingface.read(name, dtype=dtype, download=download)
    except VesaliusError as error:
        raise VesaliusError(f"{error}{nearest(name, published.NETWORKS)}") from None
