"""Everything that is asked of one dictionary, as a study with a report: the figures of *Towards Monosemanticity*.

Bricken et al. 2023 (transformer-circuits.pub/2023/monosemantic-features) show that the latents of a sparse
autoencoder of a one-layer transformer are features more than its neurons are. Each of their figures is an analysis
here; this runs those that fit, and ends with a table of their numbers beside these. Theirs are of dictionaries that
saw 8 billion activations of a network that read 100 billion tokens; the scale of what is compared stands in the table.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vesalius import figures
from vesalius.battery import Findings, run_folder, write_findings
from vesalius.dictionaries import Dictionary, SparseDictionary
from vesalius.figures import Figure
from vesalius.method import Method, methods
from vesalius.model import Model
from vesalius.result import Headline, Result

ORDER = (
    "dictionary_metrics",
    "feature_dashboard",
    "feature_proxies",
    "feature_ablation",
    "pinned_sampling",
    "finite_state_features",
    "automated_interpretability",
    "feature_universality",
    "feature_splitting",
    "feature_umap",
    "sparse_probing",
    "absorption",
    "spurious_correlation_removal",
    "targeted_probe_perturbation",
)
"""The order in which a dictionary is read."""


@dataclass(frozen=True)
class Published:
    """One figure of the paper: what it says, its number, and which claim of which analysis answers it."""

    figure: str
    asks: str
    theirs: str
    method: str
    claim: str = ""
    """How the claim begins, of several the one of the largest value; empty: any."""


PUBLISHED = (
    Published(
        "F1", "loss recovered, against zero ablation", "0.79", "dictionary_metrics", "recovered of what zero"
    ),
    Published(
        "F2", "active latents of a token (L0)", "10 to 20 aimed at", "dictionary_metrics", "active latents"
    ),
    Published(
        "F3",
        "density of the median latent, log10",
        "peaks near −7 and −5",
        "dictionary_metrics",
        "median density",
    ),
    Published(
        "F4",
        "share of latents never active",
        "168 of 4,096 (0.041)",
        "dictionary_metrics",
        "share of latents never",
    ),
    Published(
        "F5",
        "cosine of read and written direction",
        "separates the ultralow",
        "dictionary_metrics",
        "median cosine",
    ),
    Published(
        "F6–F9",
        "sensitivity of a latent to the kind of text that one stands for best",
        "0.80 (DNA)",
        "feature_proxies",
        "sensitivity",
    ),
    Published(
        "F10",
        "logit weights agree with the partner's",
        "0.23 (Arabic)",
        "feature_universality",
        "correlation of partners' logit",
    ),
    Published("F11", "nats that a latent gives the tokens it predicts", "shown", "feature_ablation"),
    Published("F12", "gain of its own tokens when a latent is pinned", "shown", "pinned_sampling"),
    Published(
        "F13",
        "correlation with the most correlated neuron",
        "0.10 to 0.18",
        "feature_dashboard",
        "correlation of a latent with its most",
    ),
    Published(
        "F14–F15",
        "correlation with the partner in another network, median",
        "0.72",
        "feature_universality",
        "correlation of a latent with its best",
    ),
    Published("F15", "the same for neurons, median", "0.46", "feature_universality", "the same for neurons"),
    Published(
        "F16",
        "attributions agree with the partner's",
        "tracks activations",
        "feature_universality",
        "correlation of partners' attributions",
    ),
    Published("F17", "latents with a parent in the smaller dictionary", "1 → 3 → many", "feature_splitting"),
    Published("F18", "clusters of directions", "shown", "feature_umap", "clusters"),
    Published(
        "F20",
        "explanations predict activations, Spearman",
        "above neurons",
        "automated_interpretability",
        "simulation",
    ),
    Published(
        "F21", "explanations predict logits", "0.74 against 0.58", "automated_interpretability", "logits"
    ),
    Published(
        "F22", "importance scoring", "collapses for sparse", "automated_interpretability", "importance"
    ),
    Published(
        "F23",
        "single-token latents against a shuffled network",
        "most, when shuffled",
        "automated_interpretability",
        "share of latents of a single",
    ),
    Published("F24", "latents that call each other", "chains", "finite_state_features"),
)
"""F19, scores given by people, is in no program's reach; see `labelled_examples` for blind labelling."""


@dataclass(frozen=True)
class TowardsMonosemanticity(Result):
    """The paper's numbers beside those of one dictionary; `rows` has a line for each figure."""

    dictionary: str
    scale: str
    """What was seen, of both."""
    rows: list[dict]
    """figure, asks, theirs, ours, control, evidence; `ours` is None where no analysis could be made."""

    def headlines(self) -> list[Headline]:
        made = sum(row["ours"] is not None for row in self.rows)
        stand = sum(row["evidence"] is True for row in self.rows)
        judged = sum(row["evidence"] is not None for row in self.rows)
        return [
            Headline("figures made", f"{made} of {len(self.rows)}", note=self.scale),
            Headline("of those that are judged, beyond their control", f"{stand} of {judged}"),
        ]

    def figure(self) -> Figure:
        """A line for each figure."""
        told = {True: "beyond control", False: "not beyond control", None: ""}
        cells = [
            [
                row["figure"],
                row["asks"],
                row["theirs"],
                _shown(row["ours"]),
                _shown(row["control"]),
                told[row["evidence"]],
            ]
            for row in self.rows
        ]
        columns = ["figure", "what it asks", "the paper (A/1)", "here", "control", ""]
        title = f"Towards Monosemanticity, and {self.dictionary}"
        return figures.table(columns, cells, title=title, caption=self.scale)


def decompose(
    model: Model,
    dictionary: Dictionary | str | Path,
    *,
    others: Sequence[Dictionary | str | Path] = (),
    other: Dictionary | str | Path = "",
    other_model: str | Model = "",
    out: str | Path | None = None,
    text: str | None = None,
    images: str | Path = "shapes",
    contexts: int | None = None,
    seed: int = 0,
) -> Findings:
    """Ask all that is asked of a dictionary, and write the study into `out` (`runs/MODEL-DICTIONARY` by default).

    `others` are dictionaries of other sizes of the same site, in which latents may split; `other` is one of the same
    size, of another seed or of `other_model`, in which they may have partners. `text` or `images` are what the model is
    shown, `contexts` how many texts.

    Raises VesaliusError for a dictionary of another model, or one analysis's reason in the study.
    """
    opened = model.dictionary(dictionary)
    given = {
        "others": list(others) or None, "other": other or None, "other_model": other_model or None, "text": text,
        "images": images, "contexts": contexts, "seed": seed,
    }  # fmt: skip
    chosen = {name: method for name, method in methods().items() if method.subject == "dictionary"}
    ordered = sorted(chosen.items(), key=lambda item: (_place(item[0]), item[0]))
    missing = {name: sorted(method.missing(model)) for name, method in ordered}
    skipped = {name: f"the model has no {', no '.join(lacks)}" for name, lacks in missing.items() if lacks}
    if not other:
        skipped["feature_universality"] = "no other dictionary was given in which to look for partners"
    if not others:
        skipped["feature_splitting"] = "no dictionaries of other sizes were given"
    made: dict[str, Result] = {}
    analyses: dict[str, Callable[[], Result]] = {
        name: partial(_kept, made, method, model, opened, given)
        for name, method in ordered
        if name not in skipped
    }
    analyses["towards_monosemanticity"] = lambda: _compared(model, opened, made)
    return write_findings(
        model,
        analyses,
        folder=Path(out) if out is not None else run_folder(f"{model.name}-{opened}"),
        title=f"{opened} of {model.name}",
        skipped=skipped,
    )


def _kept(
    made: dict[str, Result], method: Method, model: Model, dictionary: Dictionary, given: dict[str, Any]
) -> Result:
    """One analysis with what of `given` it takes and was said; it is kept for the table."""
    taken = {name: value for name, value in given.items() if name in method.parameters and value is not None}
    made[method.name] = method.function(model, dictionary, **taken)
    return made[method.name]


def _compared(model: Model, dictionary: Dictionary, made: dict[str, Result]) -> TowardsMonosemanticity:
    rows = []
    for published in PUBLISHED:
        found = _claim(made.get(published.method), published.claim)
        rows.append(
            {
                "figure": published.figure,
                "asks": published.asks,
                "theirs": published.theirs,
                "ours": found.value if found else None,
                "control": found.control if found else None,
                "evidence": found.evidence if found else None,
            }
        )
    about = dictionary.about if isinstance(dictionary, SparseDictionary) else {}
    seen = about.get("learned", {}).get("rows")
    here = f"{seen:,}" if seen else "a number that is not known"
    scale = f"The paper's dictionary saw 8,192,000,000 activations; {dictionary} saw {here}."
    provenance = {
        "method": "towards_monosemanticity",
        "model": model.name,
        "model_hash": model.hash,
        "dictionary": str(dictionary),
        "of": sorted(made),
    }
    return TowardsMonosemanticity(str(dictionary), scale, rows, provenance=provenance)


def _claim(result: Result | None, begins: str) -> Headline | None:
    """Of the claims of a result that begin so, that of the largest value."""
    claims = [] if result is None else result.headlines()
    fitting = [claim for claim in claims if claim.claim.startswith(begins)]
    numbers = [claim for claim in fitting if not isinstance(claim.value, str)]
    return max(numbers, key=lambda claim: float(claim.value)) if numbers else next(iter(fitting), None)


def _place(name: str) -> int:
    return ORDER.index(name) if name in ORDER else len(ORDER)


def _shown(value: float | str | None) -> str:
    return "" if value is None else value if isinstance(value, str) else f"{value:.3g}"
