"""Networks of the Hugging Face library `transformers`: a local folder, or the id of one on the hub.

The network is transformers' own, untouched; attention is computed by SDPA, or eagerly in the families whose
scores are squashed (Gemma 2), which SDPA cannot do. Nothing is fetched unless asked for, no code of a
checkpoint is run, and pickles are refused.
"""

import re
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from vesalius.errors import VesaliusError, nearest
from vesalius.formats import Parts
from vesalius.formats.tokenizer import load_tokenizer
from vesalius.formats.weights import load_state

if TYPE_CHECKING:
    from tokenizers import Tokenizer

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
FETCHED = ["*.json", "*.safetensors", "*.model", "*.txt"]


def read(name: str, *, dtype: torch.dtype = torch.float32, download: bool = False) -> Parts:
    """The network, tokenizer and first token of a folder or hub id.

    Raises VesaliusError if the name is neither, if it would have to be fetched and `download` is False, if
    its kind is unknown to the installed transformers, or if a weight is missing from its files.
    """
    transformers = installed_transformers()
    folder = local_folder(name, download=download)
    try:
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, KeyError, OSError) as error:
        raise VesaliusError(
            f"transformers cannot read the config.json of {name}: {first_sentence(error)}"
        ) from None
    classes = config.architectures or []
    known = dir(transformers)
    kind = classes[0] if classes else "network without a named class"
    if kind not in known:
        raise VesaliusError(
            f"{name} is a {kind}, which transformers {transformers.__version__} lacks{nearest(kind, known)}"
        )
    module = filled(getattr(transformers, kind), config, source=folder, dtype=dtype, name=name)
    tokenizer = read_tokenizer(folder)
    return Parts(module, tokenizer, prepended(tokenizer), name)


def transformers_module(
    family: str, sizes: dict[str, Any], state: dict[str, Tensor], *, dtype: torch.dtype, name: str
) -> Any:
    """A language model of `family` (`Llama`, `Qwen2`) with these sizes and these weights."""
    transformers = installed_transformers()
    kind = "Gemma3Text" if family == "Gemma3" else family
    config = getattr(transformers, f"{kind}Config")(**sizes)
    return filled(getattr(transformers, f"{family}ForCausalLM"), config, source=state, dtype=dtype, name=name)


def filled(
    kind: Any, config: Any, *, source: Path | dict[str, Tensor], dtype: torch.dtype, name: str
) -> nn.Module:
    """An instance of `kind` with the weights of a folder or of a state; every weight must be found."""
    if isinstance(source, Path) and not any(source.glob("*.safetensors")):
        source = torch_shards(source, name)
    folder, state = (source, None) if isinstance(source, Path) else (None, source)
    config._attn_implementation = "sdpa" if kind._supports_sdpa else "eager"
    asked = {"dtype": dtype, "output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        with quiet():
            module, report = kind.from_pretrained(folder, config=config, state_dict=state, **asked)
    except SafetensorError as error:
        raise VesaliusError(
            f"the weights of {name} are damaged or cut short ({error}); fetch them again."
        ) from None
    absent = sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])})
    if absent:
        raise VesaliusError(
            f"the files of {name} lack {len(absent)} of its weights, or have another shape: {absent[0]}"
        )
    return module.eval()


def torch_shards(folder: Path, name: str) -> dict[str, Tensor]:
    """All tensors of the `pytorch_model*.bin` files of a folder."""
    shards = sorted(folder.glob("pytorch_model*.bin"))
    if not shards:
        raise VesaliusError(f"{name} has no weights; expected *.safetensors in {folder}")
    return {key: tensor for shard in shards for key, tensor in load_state(shard).items()}


def local_folder(name: str, *, download: bool) -> Path:
    """Where the files are: the folder itself, or the hub's cache."""
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise VesaliusError(
                f"the folder {name} has no config.json; expected one, with *.safetensors beside it"
            )
        return path
    if path.exists() or not HUB_ID.fullmatch(name) or name.startswith("."):
        near = nearest(path.name, [other.name for other in path.parent.glob("*")])
        raise VesaliusError(f"'{name}' is not a folder, a .gguf file, zoo/NAME or a hub id{near}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return Path(snapshot_download(name, allow_patterns=FETCHED, local_files_only=not download))
    except LocalEntryNotFoundError:
        reason = (
            "could not be fetched" if download else "is not on this computer; pass download=True to fetch it"
        )
        raise VesaliusError(f"'{name}' {reason}") from None
    except (HfHubHTTPError, OfflineModeIsEnabled, ConnectionError) as error:
        raise VesaliusError(f"'{name}' could not be fetched: {first_sentence(error)}") from None


def read_tokenizer(folder: Path) -> "Tokenizer | None":
    """The folder's tokenizer without its truncation and padding, or None if it has none."""
    if not (folder / "tokenizer.json").is_file():
        if not any((folder / file).is_file() for file in ("vocab.json", "vocab.txt", "tokenizer.model")):
            return None
        tokenizer = installed_transformers().AutoTokenizer.from_pretrained(folder, local_files_only=True)
        return tokenizer.backend_tokenizer
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def prepended(tokenizer: "Tokenizer | None") -> int | None:
    """The one token that the tokenizer itself puts before every text and nothing after it, or None."""
    if tokenizer is None:
        return None
    bare, full = (tokenizer.encode("a", add_special_tokens=special).ids for special in (False, True))
    return full[0] if full[1:] == bare else None


def installed_transformers() -> ModuleType:
    """The package, if the extra that brings it is installed."""
    try:
        import transformers
    except ImportError:
        raise VesaliusError(
            "this network needs transformers; install it with pip install 'vesalius[hf]'"
        ) from None
    return transformers


@contextmanager
def quiet():
    """No progress bars or advice from transformers while a network is read; what matters is raised."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def first_sentence(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
