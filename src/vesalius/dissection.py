"""The main job: run every analysis that fits a model, and write down what was found as a study with a report.

1. An analysis fits if the model has all that it needs; the others are listed with what is missing, and so are those
   that find, once they look at the model, that they do not apply to it. What asks about one feature of a network is
   in that feature's dossier, and what asks about a concept or about prompts is run by itself, with these named.
2. They run from the tokens inwards: what the embedding alone predicts, what single heads add, what pairs of heads do.
"""

from functools import partial
from pathlib import Path

from vesalius.battery import Findings, run_folder, write_findings
from vesalius.errors import VesaliusError
from vesalius.method import Method, methods
from vesalius.model import Model

ORDER = (
    "bigrams",
    "skip_trigrams",
    "copying_heads",
    "composition",
    "induction_heads",
    "induction_ablation",
    "head_effect",
    "term_importance",
    "attention_patterns",
    "logit_lens",
    "direct_logit_attribution",
    "activation_patching",
    "in_context_learning",
    "phase_change",
)
"""The order in which the battery reads; analyses that are not named follow by name."""

SUBJECTS = {
    "feature": "it is about one feature; see vesalius feature MODEL SITE[UNIT]",
    "dictionary": "it is about a dictionary; see vesalius dictionary MODEL DICTIONARY",
}
"""What is said of an analysis that is about something in a model."""


def dissect(model: Model, *, out: str | Path | None = None) -> Findings:
    """Run the battery that fits `model`, and write the study into `out` (`runs/NAME` by default).

    Raises VesaliusError if nothing fits, or if `out` is a folder that holds something other than a study.
    """
    fitting, skipped = battery(model)
    if model.architecture is None or not fitting:
        kinds = ", ".join(sorted(model.kinds)) or "no known architecture"
        raise VesaliusError(f"no analysis fits {model.name}, which has {kinds}")
    return write_findings(
        model,
        {name: partial(method.function, model) for name, method in fitting.items()},
        folder=Path(out) if out is not None else run_folder(model.name),
        title=f"Dissection of {model.name}",
        skipped=skipped,
    )


def battery(model: Model) -> tuple[dict[str, Method], dict[str, str]]:
    """The analyses that fit a model in reading order, and for each of the others what it needs and has not.

    >>> from vesalius.testbed import random_attn
    >>> fitting, skipped = battery(random_attn(n_layers=0))
    >>> "copying_heads" in fitting, skipped["copying_heads"]
    (False, 'the model has no attention')
    """
    place = {name: number for number, name in enumerate(ORDER)}
    ordered = sorted(methods().items(), key=lambda item: (place.get(item[0], len(ORDER)), item[0]))
    missing = {name: sorted(method.missing(model)) for name, method in ordered}
    skipped = {name: f"the model has no {', no '.join(kinds)}" for name, kinds in missing.items() if kinds}
    skipped |= {
        name: SUBJECTS[method.subject] for name, method in ordered if method.subject and name not in skipped
    }
    skipped |= {
        name: f"it is about {asked} that you name; see vesalius {name.replace('_', '-')} --help"
        for name, method in ordered
        if (asked := _asked(method)) and name not in skipped
    }
    return {name: method for name, method in ordered if name not in skipped}, skipped


def _asked(method: Method) -> str:
    """What a question of its user is about that no model has by itself: labelled pairs, or prompts."""
    given = set(method.parameters)
    if "concept" in given or (method.room == "directions" and "pairs" in given):
        return "a concept"
    return "prompts" if "prompts" in given else ""
