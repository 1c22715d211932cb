"""Interpreters: who explains a feature in words, and predicts from the words alone what it does on other examples.

Bills et al. 2023 (openaipublic.blob.core.windows.net/neuron-explainer) explain and simulate with a language model;
Bricken et al. 2023 (transformer-circuits.pub/2023/monosemantic-features) score logits as well, and Paulo et al. 2024
(arXiv 2410.13928) replace simulation by two questions with one answer each, detection and fuzzing. One of two answers
here: `offline`, whose words are statistics of tokens, the same on every computer, or any endpoint that speaks the
OpenAI protocol.
"""

from pathlib import Path

from vesalius.errors import VesaliusError
from vesalius.interpreters.endpoint import Endpoint
from vesalius.interpreters.offline import TokenStatistics
from vesalius.interpreters.snippets import Explained, Interpreter, Nonsense, Snippet, Unreachable

__all__ = ["Endpoint", "Explained", "Interpreter", "Nonsense", "Snippet", "TokenStatistics", "Unreachable"]


def interpreter_of(explainer: str, *, model: str = "", answers: str | Path | None = None) -> Interpreter:
    """`offline`, or an address such as `http://localhost:8000/v1`; `answers` is the folder its answers are kept in.

    Raises VesaliusError for anything else.

    >>> interpreter_of("offline").name
    'offline'
    """
    if explainer == "offline":
        return TokenStatistics()
    if explainer.startswith(("http://", "https://")):
        return Endpoint(explainer, model, None if answers is None else Path(answers))
    raise VesaliusError(
        f"'{explainer}' is no interpreter; expected 'offline', or the address of a server, as 'http://localhost:8000/v1'"
    )
