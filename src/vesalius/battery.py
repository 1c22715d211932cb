"""Several analyses of one model, run one after the other and written down as a study with a report.

One that cannot do its work on this model is recorded with its reason, and the rest goes on. All is written into a
folder beside the final one and renamed at the end, so that a study that exists is whole.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vesalius.errors import Inapplicable, VesaliusError
from vesalius.files import whole
from vesalius.method import methods
from vesalius.model import Model
from vesalius.report import write_report
from vesalius.result import Headline, Result
from vesalius.study import Study
from vesalius.terminal import progress_of


@dataclass(frozen=True)
class Findings:
    """A finished battery: the study it made, its report, and what ended with an error."""

    study: Study
    report: Path
    failed: dict[str, str]
    """Analysis → the error it ended with."""

    def headlines(self) -> list[tuple[str, Headline]]:
        """Every claim with the analysis that makes it."""
        return [(entry.name, headline) for entry in self.study.entries for headline in entry.headlines]


def write_findings(
    model: Model,
    analyses: Mapping[str, Callable[[], Result]],
    *,
    folder: Path,
    title: str,
    skipped: Mapping[str, str],
    claims: Callable[[str, Result], Iterable[str]] = lambda name, result: (),
    opening: Callable[[Study], str] = lambda study: "",
) -> Findings:
    """Run `analyses` and write their study into `folder`.

    `claims` are what may be said of each result, and `opening` what the reader is told first, once all are made.
    Raises VesaliusError if `folder` holds something other than a study.
    """
    if folder.exists() and not (folder / "study.json").exists() and any(folder.iterdir()):
        raise VesaliusError(f"'{folder}' exists and is not a study; expected a new or empty folder")
    failed: dict[str, str] = {}
    with whole(folder) as partial:
        study = Study(partial, title=title, model=model)
        with progress_of(len(analyses)) as begin:
            for name, analysis in analyses.items():
                begin(name)
                try:
                    result = analysis()
                    known = methods().get(name)
                    study.add(result, text=known.headline if known else "", claims=claims(name, result))
                except Inapplicable as reason:
                    study.skip(name, str(reason))
                except VesaliusError as error:
                    failed[name] = str(error)
                    study.skip(name, f"failed: {error}")
        for name, reason in skipped.items():
            study.skip(name, reason)
        study.text = opening(study)
        study.save()
        write_report(study, partial / "report.html")
    return Findings(Study.load(folder), folder / "report.html", failed)


def run_folder(name: str) -> Path:
    """Where a study lies if no folder is named: `runs/NAME`, in characters that every file system takes.

    >>> str(run_folder("zoo/attn-2l"))
    'runs/zoo-attn-2l'
    """
    return Path("runs") / re.sub(r"[^\w.-]+", "-", name).strip("-.")
