"""The main job: run every analysis that fits a model, and write down what was found as a study with a report.

1. An analysis fits if the model has all that it needs; the others are listed with what is missing, and so are those
   that find, once they look at the model, that they do not apply to it.
2. They run from the tokens inwards: what the embedding alone predicts, what single heads add, what pairs of heads do.
3. One that cannot do its work on this model is recorded with its reason, and the rest goes on.
4. All is written into a folder beside the final one and renamed at the end, so that a study that exists is whole.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from vesalius.errors import Inapplicable, VesaliusError
from vesalius.files import whole
from vesalius.method import Method, methods
from vesalius.model import Model
from vesalius.report import write_report
from vesalius.result import Headline
from vesalius.study import Study
from vesalius.terminal import progress_of

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


@dataclass(frozen=True)
class Dissection:
    """A finished dissection: the study it made, its report, and what ended with an error."""

    study: Study
    report: Path
    failed: dict[str, str]
    """Analysis → the error it ended with."""

    def headlines(self) -> list[tuple[str, Headline]]:
        """Every claim with the analysis that makes it."""
        return [(entry.name, headline) for entry in self.study.entries for headline in entry.headlines]


def dissect(model: Model, *, out: str | Path | None = None) -> Dissection:
    """Run the battery that fits `model`, and write the study into `out` (`runs/NAME` by default).

    Raises VesaliusError if nothing fits, or if `out` is a folder that holds something other than a study.
    """
    folder = Path(out) if out is not None else Path("runs") / re.sub(r"[^\w.-]+", "-", model.name).strip("-.")
    fitting, skipped = battery(model)
    if model.architecture is None or not fitting:
        kinds = ", ".join(sorted(model.kinds)) or "no known architecture"
        raise VesaliusError(f"no analysis fits {model.name}, which has {kinds}")
    if folder.exists() and not (folder / "study.json").exists() and any(folder.iterdir()):
        raise VesaliusError(f"'{folder}' exists and is not a study; expected a new or empty folder")
    with whole(folder) as partial:
        study = Study(partial, title=f"Dissection of {model.name}", model=model)
        failed = _run(model, fitting, study)
        for name, reason in skipped.items():
            study.skip(name, reason)
        write_report(study, partial / "report.html")
    return Dissection(Study.load(folder), folder / "report.html", failed)


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
    return {name: method for name, method in ordered if not missing[name]}, skipped


def _run(model: Model, fitting: dict[str, Method], study: Study) -> dict[str, str]:
    """Run and save one analysis after the other; returns those that ended with an error."""
    failed: dict[str, str] = {}
    with progress_of(len(fitting)) as begin:
        for name, method in fitting.items():
            begin(name)
            try:
                study.add(method.function(model), text=method.headline)
            except Inapplicable as reason:
                study.skip(name, str(reason))
            except VesaliusError as error:
                failed[name] = str(error)
                study.skip(name, f"failed: {error}")
    return failed
