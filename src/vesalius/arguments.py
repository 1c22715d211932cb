"""The dossier of one feature: the seven arguments that it means what one thinks it means, as a study with a report.

Olah et al. 2020 (Zoom In, distill.pub/2020/circuits/zoom-in) give seven arguments for a curve detector: what
optimised pictures show, what photographs, what synthetic stimuli; how units share the orientations; which weights
build it, which use it; and whether weights written by hand do the same. Each ends in a verdict, said no more strongly
than that paper allows: what causes firing, which orientation, and that other causes, if any, are rare or weaker.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vesalius.battery import Findings, run_folder, write_findings
from vesalius.data.images import Images
from vesalius.dictionaries import Feature
from vesalius.method import methods
from vesalius.model import Model
from vesalius.result import Headline, Result
from vesalius.study import Study


@dataclass(frozen=True)
class Argument:
    """One of the seven: what it asks, and what may be said where the numbers stand and where they do not."""

    asks: str
    stands: str
    fails: str


ARGUMENTS = {
    "feature_visualization": Argument(
        "Do pictures made to raise it raise it?",
        "what the optimised pictures show causes it to fire",
        "pictures made for it tell no more than pictures made for a random network",
    ),
    "dataset_examples": Argument(
        "What do the pictures that raise it share?",
        "its strongest examples lie beyond what a random unit gives; what they share is for the reader to name, "
        "or for labels given blindly",
        "its strongest examples are no stronger than a random unit's",
    ),
    "synthetic_stimuli": Argument(
        "Does a drawn stimulus raise it, and which?",
        "of the stimuli that were drawn, those of one kind and orientation raise it",
        "no drawn stimulus raises it beyond what a random unit shows",
    ),
    "joint_tuning": Argument(
        "Do its neighbours take over when its examples are turned?",
        "it stands for one orientation, and its layer holds units for others",
        "turning its examples does not hand its response on to other units in order",
    ),
    "feature_weights": Argument(
        "Do the weights that build it make sense?",
        "its input weights are more orderly than those of a random network; whether they spell the feature is to be "
        "read in the drawing",
        "its input weights are no more orderly than those of a random network",
    ),
    "feature_use": Argument(
        "Who uses it?",
        "later units read it, or its family, more than chance",
        "no later unit reads it more than chance",
    ),
    "handwritten": Argument(
        "Do weights written from the reading do the same?",
        "a family written by hand does part of what the natural one does",
        "a family written by hand restores no more than a random one",
    ),
}


def dossier(
    model: Model,
    feature: Feature | str,
    *,
    out: str | Path | None = None,
    images: str | Path | Images = "shapes",
    n_images: int | None = None,
    steps: int | None = None,
    seed: int = 0,
) -> Findings:
    """Make all seven arguments for one feature, and write the study into `out` (`runs/MODEL-FEATURE` by default).

    `images` are where examples come from, `n_images` how many are looked at, `steps` how long pictures are optimised;
    None leaves each argument its own number.

    Raises VesaliusError for a feature the model does not have, or one argument's reason in the study where that
    argument cannot be made.
    """
    feature = model.feature(feature)
    given = {"images": images, "n_images": n_images, "steps": steps, "seed": seed}
    missing = {name: sorted(methods()[name].missing(model)) for name in ARGUMENTS}
    return write_findings(
        model,
        {name: _argument(name, model, feature, given) for name, lacks in missing.items() if not lacks},
        folder=Path(out) if out is not None else run_folder(f"{model.name}-{feature}"),
        title=f"{feature} of {model.name}",
        skipped={name: f"the model has no {', no '.join(lacks)}" for name, lacks in missing.items() if lacks},
        claims=_claims,
        opening=_conclusion,
    )


def verdict(headlines: Iterable[Headline]) -> bool | None:
    """Whether an argument stands: every judged claim against its control, None where none is judged.

    >>> verdict([Headline("a", 1.0, evidence=True), Headline("b", 1.0)]), verdict([Headline("b", 1.0)])
    (True, None)
    """
    judged = [headline.evidence for headline in headlines if headline.evidence is not None]
    return all(judged) if judged else None


def _argument(name: str, model: Model, feature: Feature, given: dict[str, Any]) -> Any:
    """The call of one argument, with what of `given` it takes and was said."""
    method = methods()[name]
    taken = {key: value for key, value in given.items() if key in method.parameters and value is not None}
    arguments = [feature] if method.subject else []
    return partial(method.function, model, *arguments, **taken)


def _claims(name: str, result: Result) -> list[str]:
    """The verdict line."""
    argument, stands = ARGUMENTS[name], verdict(result.headlines())
    told = {
        True: argument.stands,
        False: argument.fails if _none(result) else f"in part: {argument.stands}",
        None: "described, and not judged",
    }[stands]
    return [f"{argument.asks} Verdict: {told}."]


def _none(result: Result) -> bool:
    return not any(headline.evidence for headline in result.headlines())


def _conclusion(study: Study) -> str:
    """What may be said of the feature as a whole, from the arguments that stand."""
    stands = {entry.name: verdict(entry.headlines) for entry in study.entries}
    number = sum(value is True for value in stands.values())
    may = [
        words
        for words, needed in (
            ("what its pictures show causes it to fire", ("feature_visualization", "synthetic_stimuli")),
            ("it stands for one orientation", ("synthetic_stimuli", "joint_tuning")),
            (
                "other causes, if there are any, are rare or weaker",
                ("feature_visualization", "dataset_examples"),
            ),
        )
        if all(stands.get(name) is True for name in needed)
    ]
    told = (
        f"{number} of {len(ARGUMENTS)} arguments stand against their controls; {len(stands)} could be made."
    )
    allowed = (
        f"What may be said: {'; '.join(may)}." if may else "Together they do not support a claim about it."
    )
    return f"{told}\n\n{allowed}"
