"""Image networks of torchvision (`torchvision:resnet50`) and timm (`timm:resnetv2_50`), where these are installed.

The module, its weights, its classes and its preprocessing are the library's own. Nothing here needs either: any
module can be opened with `vs.Model(module, preprocessing=vs.Preprocessing(…))`.
"""

from importlib import import_module
from pathlib import Path
from types import ModuleType

from vesalius.errors import VesaliusError, nearest
from vesalius.formats import Parts
from vesalius.preprocessing import Preprocessing

LIBRARIES = ("torchvision", "timm")


def read(name: str, *, download: bool = False) -> Parts:
    """A network by `LIBRARY:NAME`, with the weights the library hands out for it.

    Raises VesaliusError if the library cannot be imported, has no network of this name, or would have to fetch its
    weights and `download` is False.
    """
    library, _, network = name.partition(":")
    return from_torchvision(network, download) if library == "torchvision" else from_timm(network, download)


def from_torchvision(network: str, download: bool) -> Parts:
    models = installed("torchvision.models")
    known = models.list_models()
    if network not in known:
        raise VesaliusError(f"torchvision has no network '{network}'{nearest(network, known)}")
    weights = models.get_model_weights(network).DEFAULT
    file = Path(import_module("torch.hub").get_dir()) / "checkpoints" / weights.url.rpartition("/")[2]
    demand_file(file.is_file(), f"torchvision:{network}", download)
    wanted = weights.transforms()
    (side,), (resized,) = wanted.crop_size, wanted.resize_size
    preprocessing = Preprocessing(
        size=(side, side), mean=tuple(wanted.mean), sd=tuple(wanted.std), crop=side / resized
    )
    module = models.get_model(network, weights=weights)
    return Parts(module, None, None, network, preprocessing, tuple(weights.meta["categories"]))


def from_timm(network: str, download: bool) -> Parts:
    timm = installed("timm")
    known = timm.list_models(pretrained=True)
    if network not in known and network.partition(".")[0] not in {one.partition(".")[0] for one in known}:
        raise VesaliusError(f"timm has no trained network '{network}'{nearest(network, known)}")
    hub = timm.get_pretrained_cfg(network).hf_hub_id
    found = import_module("huggingface_hub").try_to_load_from_cache(hub, "model.safetensors") if hub else None
    demand_file(isinstance(found, str), f"timm:{network}", download)
    module = timm.create_model(network, pretrained=True)
    wanted = timm.data.resolve_model_data_config(module)
    preprocessing = Preprocessing(
        size=tuple(wanted["input_size"][1:]),
        mean=tuple(wanted["mean"]),
        sd=tuple(wanted["std"]),
        crop=wanted["crop_pct"],
    )
    return Parts(module, None, None, network, preprocessing)


def installed(package: str) -> ModuleType:
    """A package, or one sentence on why it does not come and what to do."""
    library = package.partition(".")[0]
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        raise VesaliusError(
            f"networks of {library} need {library}, which is not installed ({error}): pip install {library} in the "
            "release made for your torch, or give the module itself to vs.Model(module, preprocessing=…)"
        ) from None
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        reason = str(error).splitlines()[0]
        raise VesaliusError(
            f"{library} is installed but cannot be imported ({reason}), most often because it was made for another "
            f"torch: install the release of {library} that fits torch {import_module('torch').__version__}, or give "
            "the module itself to vs.Model(module, preprocessing=…)"
        ) from None


def demand_file(present: bool, name: str, download: bool) -> None:
    if not (present or download):
        raise VesaliusError(
            f"the weights of '{name}' are not on this computer; pass download=True to fetch them"
        )
