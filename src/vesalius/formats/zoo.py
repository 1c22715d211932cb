"""The zoo: small networks trained by `vesalius.recipes`, each a folder of `model.safetensors` and `card.json`.

A card names the network (`ToyTransformer` if it names none) and its shape; that of an image network also how
pictures are prepared for it, and its labels; that of a network whose tokens are no text, which of them begins.
Shipped ones lie inside the package; those trained here lie in the cache (`VESALIUS_CACHE`, else
~/.cache/vesalius).
`zoo/attn-2l` is the trained network, `zoo/attn-2l/step-001000` a checkpoint of its training.
"""

import json
import os
from hashlib import sha256
from pathlib import Path

from vesalius.architectures.toy import ToyTransformer
from vesalius.errors import VesaliusError, nearest
from vesalius.formats import Parts
from vesalius.networks.plain import PlainNetwork
from vesalius.preprocessing import Preprocessing

SHIPPED = Path(__file__).parent.parent / "zoo"
NETWORKS = {"ToyTransformer": ToyTransformer, "PlainNetwork": PlainNetwork}


def cache_folder() -> Path:
    """Where trained networks and corpora are kept on this computer."""
    return Path(os.environ.get("VESALIUS_CACHE", "~/.cache/vesalius")).expanduser()


def names() -> list[str]:
    """Every network of the zoo, shipped or in the cache, as `zoo/NAME`."""
    cards = [card for home in (SHIPPED, cache_folder() / "zoo") for card in home.glob("*/card.json")]
    return sorted({f"zoo/{card.parent.name}" for card in cards})


def cards() -> dict[str, dict]:
    """What is known of each network of the zoo: its shape, data, recipe and measured facts."""
    return {name: json.loads((folder(name) / "card.json").read_text(encoding="utf-8")) for name in names()}


def folder(name: str) -> Path:
    """The folder of `zoo/NAME`; the shipped one before the one in the cache."""
    short = name.removeprefix("zoo/")
    for home in (SHIPPED, cache_folder() / "zoo"):
        if (home / short / "card.json").is_file():
            return home / short
    raise VesaliusError(
        f"'{name}' is not in the zoo; it has {', '.join(names()) or 'nothing yet'}{nearest(name, names())}"
    )


def checkpoints(name: str) -> list[str]:
    """The checkpoints of a network's training, in order of steps, as names that `load` opens."""
    return [
        f"{name}/{path.stem}" for path in sorted((folder(name) / "checkpoints").glob("step-*.safetensors"))
    ]


def dictionary_file(name: str) -> Path:
    """The file of a dictionary that goes with a network, as in `zoo/mlp-1l/latents-4096`.

    Raises VesaliusError with those there are if there is none of that name.
    """
    short, _, wanted = name.removeprefix("zoo/").partition("/")
    home = folder(f"zoo/{short}") / "dictionaries"
    file = home / f"{wanted}.safetensors"
    if not file.is_file():
        there = [f"zoo/{short}/{one.stem}" for one in sorted(home.glob("*.safetensors"))]
        raise VesaliusError(
            f"there is no dictionary '{name}'; with zoo/{short} there is {', '.join(there) or 'none'}"
            f"{nearest(name, there)}"
        )
    return file


def read(name: str) -> Parts:
    """A network of the zoo, or a checkpoint of one."""
    short, _, step = name.removeprefix("zoo/").partition("/")
    home = folder(f"zoo/{short}")
    if not step:
        return read_folder(home, name=name)
    weights = home / "checkpoints" / f"{step}.safetensors"
    if not weights.is_file():
        steps = checkpoints(f"zoo/{short}")
        raise VesaliusError(
            f"'{name}' is not a checkpoint of zoo/{short}; it has {', '.join(steps) or 'none'}{nearest(name, steps)}"
        )
    return read_folder(home, name=name, weights=weights)


def read_folder(home: Path, *, name: str | None = None, weights: Path | None = None) -> Parts:
    """A folder with `card.json` and `model.safetensors`, and a tokenizer beside it or named by the card.

    Raises VesaliusError for a damaged card, and for weights that are not those of the card's network.
    """
    from vesalius.formats.checkpoints import dequantise
    from vesalius.formats.tokenizer import load_tokenizer
    from vesalius.formats.weights import load_state

    module = network_of(home / "card.json")
    weights, checkpoint = weights or home / "model.safetensors", weights is not None
    state = load_state(weights)
    try:
        module.load_state_dict(dequantise(state) if checkpoint else state)
    except RuntimeError as error:
        problem = " ".join(str(error).split(":", 1)[-1].split())
        raise VesaliusError(
            f"{weights} does not hold the network that its card.json describes: {problem}"
        ) from None
    if isinstance(module, PlainNetwork):
        return pictures_parts(module, home / "card.json", name or str(home))
    facts = json.loads((home / "card.json").read_text(encoding="utf-8"))
    if "tokens" in facts:
        return Parts(module, None, facts["tokens"]["bos"], name or str(home))
    named = facts.get("tokenizer", {}).get("sha256")
    own, shipped = home / "tokenizer.json", SHIPPED / "tokenizer.json"
    read = own if own.is_file() else shipped if named == sha256(shipped.read_bytes()).hexdigest() else None
    tokenizer = load_tokenizer(read) if read else None
    bos = tokenizer.token_to_id("<|bos|>") if tokenizer else None
    return Parts(module, tokenizer, bos, name or str(home))


def network_of(card: Path) -> ToyTransformer | PlainNetwork:
    """An untrained network of the kind and shape that a card names."""
    try:
        facts = json.loads(card.read_text(encoding="utf-8"))
        return NETWORKS[facts.get("network", "ToyTransformer")](**facts["shape"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise VesaliusError(f"{card} is damaged: it names no shape of a network ({error})") from None


def pictures_parts(module: PlainNetwork, card: Path, name: str) -> Parts:
    """An image network with what its card says of its pictures and its labels."""
    facts = json.loads(card.read_text(encoding="utf-8"))
    try:
        size, mean, sd = (tuple(facts["preprocessing"][key]) for key in ("size", "mean", "sd"))
        return Parts(module, None, None, name, Preprocessing(size, mean, sd), tuple(facts["labels"]))
    except (KeyError, TypeError, AttributeError) as error:
        raise VesaliusError(
            f"{card} is damaged: it does not say how pictures are prepared ({error})"
        ) from None
