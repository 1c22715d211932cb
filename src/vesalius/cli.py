"""The command line: every registered analysis as a command, derived from its signature, and a few of its own.

    vesalius dissect MODEL            the battery that fits a model, as a study with a report
    vesalius feature MODEL SITE[UNIT] the seven arguments for one feature, as a study with a report
    vesalius ANALYSIS MODEL           one analysis: a table, or --json, --save DIR, --figure FILE
    vesalius models | sites | train   what there is to open, to point at, to train

What a person can put right is one sentence on stderr: exit code 2, or 130 for an interruption, without a traceback
unless --debug is given. `import vesalius` never imports this file.
"""

import inspect
import json as json_format
import re
import sys
import types
import typing
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from vesalius import __version__
from vesalius.errors import VesaliusError, nearest

if typing.TYPE_CHECKING:
    from vesalius.battery import Findings
    from vesalius.method import Method
    from vesalius.model import Model

BAD_INPUT = 2
INTERRUPTED = 130

MODEL = typer.Argument(
    help="zoo/NAME, a published network, a Hugging Face id, a folder, or a GGUF file", metavar="MODEL"
)
FEATURE = typer.Argument(
    help="SITE[UNIT], as in 'mixed3b[379]', or as papers write it, 3b:379", metavar="FEATURE"
)
DICTIONARY = typer.Argument(
    help="a dictionary's file or folder, ours or a published one's", metavar="DICTIONARY"
)
DATA = typer.Argument(
    help="a text, a file or folder of texts (.txt, .jsonl, .parquet), a folder or .tar of pictures, or 'shapes'",
    metavar="DATA",
)
STORE = typer.Argument(help="a store of activations, as vesalius harvest writes", metavar="STORE")
ACTIVATION = typer.Option(help="The kind of dictionary, as in 'topk(k=32)' or 'relu_l1(l1=0.004)'.")
TO = typer.Option(help="Folder of the run: its log, its state, and the dictionary.", metavar="DIR")
SUBJECTS = {"feature": FEATURE, "dictionary": DICTIONARY}
PLAIN = (int, float, bool, str, Path)


def main() -> None:
    """The `vesalius` command."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code."""
    debug = "--debug" in arguments
    words = [word for word in arguments if word != "--debug"] or ["--help"]
    try:
        code = typer.main.get_command(app)(words, prog_name="vesalius", standalone_mode=False) or 0
    except (VesaliusError, OSError, TyperException) as error:
        if debug:
            raise
        print(f"vesalius: {_sentence(error)}", file=sys.stderr)
        return BAD_INPUT
    if code == INTERRUPTED:
        print("vesalius: interrupted", file=sys.stderr)
    return code


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror.lower()}: {error.filename}" if error.filename else error.strerror.lower()
    sentence = error.format_message() if isinstance(error, TyperException) else str(error)
    return sentence.replace("Value error, ", "").rstrip(".")


class Commands(TyperGroup):
    """The commands below, and one for each registered analysis, made when it is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*super().list_commands(ctx), *map(_dashed, _methods())]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        own = super().get_command(ctx, cmd_name)
        if own is not None:
            return own
        method = _methods().get(cmd_name.replace("-", "_"))
        return None if method is None else _command(method)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            near = nearest(args[0], self.list_commands(ctx))
            raise VesaliusError(f"there is no command '{args[0]}'{near}; 'vesalius --help' lists them all")
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=Commands, add_completion=False, rich_markup_mode=None, context_settings={"max_content_width": 120}
)


def _show_version(wanted: bool) -> bool:
    if wanted:
        print(f"vesalius {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def _vesalius(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Open a trained network and see what it computes, and how we know."""


@app.command()
def dissect(
    model: Annotated[str, MODEL],
    out: Annotated[Path | None, typer.Option(help="Folder of the study; runs/NAME if not given.")] = None,
) -> int:
    """Run every analysis that fits a model and write a study: report.html for people, study.json for programs."""
    from vesalius.dissection import dissect
    from vesalius.model import load

    return _told(dissect(load(model), out=out))


@app.command()
def feature(
    model: Annotated[str, MODEL],
    feature: Annotated[str, FEATURE],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the study; runs/MODEL-FEATURE if not given.")
    ] = None,
    images: Annotated[str, typer.Option(help="A folder or .tar of pictures, or 'shapes'.")] = "shapes",
    n_images: Annotated[int | None, typer.Option(help="How many pictures are looked at.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of optimisation for each picture drawn.")] = None,
    seed: int = 0,
) -> int:
    """Make the seven arguments for one feature and write its dossier: report.html, and study.json for programs."""
    from vesalius.arguments import dossier
    from vesalius.model import load

    return _told(
        dossier(load(model), feature, out=out, images=images, n_images=n_images, steps=steps, seed=seed)
    )


@app.command()
def dictionary(
    model: Annotated[str, MODEL],
    dictionary: Annotated[str, DICTIONARY],
    other: Annotated[
        str, typer.Option(help="One of the same size: another seed's, or another model's.")
    ] = "",
    other_model: Annotated[str, typer.Option(help="The model of --other, if it is not MODEL.")] = "",
    others: Annotated[
        list[str] | None, typer.Option(help="One of another size; several may be given.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the study; runs/MODEL-DICTIONARY if not given.")
    ] = None,
    text: Annotated[str | None, typer.Option(help="What is read; the held-out sample if not given.")] = None,
    images: Annotated[str, typer.Option(help="A folder or .tar of pictures, or 'shapes'.")] = "shapes",
    contexts: Annotated[int | None, typer.Option(help="How many contexts are read.")] = None,
    seed: int = 0,
) -> int:
    """Ask all that is asked of a dictionary and write a study: every figure of Towards Monosemanticity, and a table."""
    from vesalius.model import load
    from vesalius.monosemanticity import decompose

    return _told(
        decompose(
            load(model), dictionary, others=others or (), other=other, other_model=other_model, out=out, text=text,
            images=images, contexts=contexts, seed=seed,
        )
    )  # fmt: skip


def _told(findings: "Findings") -> int:
    """Print what a battery found and where its report is; the exit code."""
    from vesalius.terminal import stdout, summary_table

    console = stdout()
    console.print(summary_table(findings.headlines()))
    for entry in findings.study.entries:
        for claim in entry.claims:
            console.print(f"{entry.name}: {claim}", markup=False, highlight=False)
    for name, reason in findings.study.skipped.items():
        kind = "not made" if name in findings.failed else "skipped"
        console.print(f"{kind}: {name}: {reason}", markup=False, highlight=False)
    console.print(f"\nreport: {findings.report}", markup=False, highlight=False, soft_wrap=True)
    return BAD_INPUT if findings.failed else 0


@app.command()
def models() -> None:
    """List the networks that ship with Vesalius, lie in the cache, can be trained by a recipe or are published."""
    from vesalius.formats import published, zoo
    from vesalius.formats.download import place
    from vesalius.recipes import RECIPES

    present = zoo.names()
    absent = [short for short in RECIPES if f"zoo/{short}" not in present]
    for name in present:
        card = json_format.loads((zoo.folder(name) / "card.json").read_text(encoding="utf-8"))
        steps = zoo.checkpoints(name)
        note = f" ({len(steps)} checkpoints: {steps[0]} …)" if steps else ""
        print(f"{name:<18} {card.get('title', '')}{note}")
    for short in absent:
        print(f"{f'zoo/{short}':<18} {RECIPES[short].title} (not here; vesalius train {short})")
    for name, network in published.NETWORKS.items():
        missing = f"; not here; vesalius fetch {name}" if network.source.home else "; from your own file"
        print(f"{name:<18} {network.about}{'' if place(network.source).is_file() else missing}")


@app.command()
def fetch(
    name: Annotated[
        str, typer.Argument(help="a published network, such as efficientnet-lite0", metavar="NAME")
    ],
) -> None:
    """Fetch the weights of a published network, or of one on Hugging Face, into the cache, and check them."""
    from vesalius.model import load

    print(load(name, download=True))


@app.command()
def sites(model: Annotated[str, MODEL]) -> None:
    """List the addresses of a model: the roles of its architecture, and its modules."""
    from vesalius.model import load

    print("\n".join(addresses(load(model))))


@app.command()
def harvest(
    model: Annotated[str, MODEL],
    data: Annotated[str, DATA],
    site: Annotated[list[str], typer.Option(help="An address, as in neurons@0; several may be given.")],
    to: Annotated[
        str, typer.Option(help="Folder or URL of the store; called again it goes on.", metavar="DIR")
    ],
    dtype: Annotated[str, typer.Option(help="float16, bfloat16, int8 or float32.")] = "float16",
    length: Annotated[int | None, typer.Option(help="Tokens of a context.")] = None,
    per_context: Annotated[int | None, typer.Option(help="Positions kept of each; all if not given.")] = None,
    limit: Annotated[int | None, typer.Option(help="Contexts or pictures read; all if not given.")] = None,
    nonfinite: Annotated[str, typer.Option(help="refuse or drop rows that are not finite.")] = "refuse",
    engine: Annotated[str, typer.Option(help="local, or ray for a cluster.")] = "local",
    address: Annotated[str, typer.Option(help="Of the cluster, as in ray's own 'auto'.")] = "",
    seed: int = 0,
) -> None:
    """Write the activations of a model over a corpus, or over pictures, into a store on disk."""
    from vesalius.model import load
    from vesalius.store import harvest
    from vesalius.terminal import progress_of

    with progress_of(1) as begin:
        begin("harvest")
        store = harvest(
            load(model), data, site, to=to, dtype=typing.cast(Any, dtype), length=length, per_context=per_context,
            limit=limit, nonfinite=typing.cast(Any, nonfinite), seed=seed, engine=typing.cast(Any, engine),
            address=address or None,
        )  # fmt: skip
    print(store)


class Training(TyperGroup):
    """What can be trained: dictionaries, and each network of the zoo by its recipe."""

    def list_commands(self, ctx: Any) -> list[str]:
        from vesalius.recipes import RECIPES

        return [*super().list_commands(ctx), *RECIPES]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return super().get_command(ctx, cmd_name) or _training(cmd_name.removeprefix("zoo/"))


train = typer.Typer(
    cls=Training,
    rich_markup_mode=None,
    help="Train a network of the zoo from nothing, or a dictionary on a store.",
)
app.add_typer(train, name="train")


def _training(name: str) -> Any:
    """The command that trains a network of the zoo."""

    def command(
        board: Annotated[
            int | None, typer.Option(help="The side of the board: 4, 6 or 8, of 'othello'.")
        ] = None,
        out: Annotated[
            Path | None, typer.Option(help="Folder of the network; the cache if not given.")
        ] = None,
        steps: Annotated[
            int | None, typer.Option(help="Training steps; the recipe's own number if not given.")
        ] = None,
        corpus: Annotated[
            Path | None, typer.Option(help="A folder of .txt files to learn from instead.")
        ] = None,
        seed: int = 0,
    ) -> None:
        from vesalius.recipes import train

        whole = name if board is None else f"{name}-{board}"
        print(train(whole, out=out, steps=steps, corpus=corpus, seed=seed))

    from vesalius.recipes import RECIPES

    title = RECIPES[name].title if name in RECIPES else "A network of the zoo"
    single = typer.Typer(add_completion=False, rich_markup_mode=None)
    single.command(name, help=f"{title}, trained from nothing by its recipe.")(command)
    return typer.main.get_command(single)


@train.command()
def sae(
    store: Annotated[str, STORE],
    to: Annotated[Path, TO],
    site: Annotated[str, typer.Option(help="Which of the store's sites; its only one if not given.")] = "",
    latents: Annotated[int, typer.Option(help="How many latents.")] = 4096,
    activation: Annotated[str, ACTIVATION] = "topk(k=32)",
    steps: Annotated[int, typer.Option(help="How many batches are seen.")] = 10_000,
    batch: Annotated[int, typer.Option(help="Rows of a batch.")] = 4096,
    lr: Annotated[float | None, typer.Option(help="Learning rate; the kind's own if not given.")] = None,
    device: Annotated[str, typer.Option(help="Where it is trained, as in cuda.")] = "cpu",
    seed: int = 0,
) -> None:
    """Train a sparse autoencoder on a site of a store; called again, it goes on where it was stopped."""
    from vesalius.dictionaries.train import fit_sae
    from vesalius.store import open_store

    opened = open_store(store)
    rows = opened[site or opened.sites[0]]
    settings = {"steps": steps, "batch": batch, "lr": lr, "seed": seed, "device": device}
    print(fit_sae(rows, latents=latents, activation=activation, to=to, watch=_log_line, **settings))


@train.command()
def transcoder(
    store: Annotated[str, STORE],
    source: Annotated[str, typer.Option(help="The site it reads, as in mlp_in.")],
    site: Annotated[str, typer.Option(help="The site it writes, as in mlp_out@0.")],
    to: Annotated[Path, TO],
    latents: Annotated[int, typer.Option(help="How many latents.")] = 4096,
    activation: Annotated[str, ACTIVATION] = "topk(k=32)",
    skip: Annotated[bool, typer.Option(help="With a linear map past the latents.")] = False,
    steps: Annotated[int, typer.Option(help="How many batches are seen.")] = 10_000,
    batch: Annotated[int, typer.Option(help="Rows of a batch.")] = 4096,
    lr: Annotated[float | None, typer.Option(help="Learning rate; the kind's own if not given.")] = None,
    device: Annotated[str, typer.Option(help="Where it is trained, as in cuda.")] = "cpu",
    seed: int = 0,
) -> None:
    """Train a transcoder, which reads one site of a store and writes another."""
    from vesalius.dictionaries.transcoders import fit_transcoder
    from vesalius.store import open_store

    rows = open_store(store)[[source, site]]
    settings = {"steps": steps, "batch": batch, "lr": lr, "seed": seed, "device": device}
    print(
        fit_transcoder(
            rows, latents=latents, activation=activation, skip=skip, to=to, watch=_log_line, **settings
        )
    )


def _log_line(entry: dict) -> None:
    """One entry of a training's log, on a terminal."""
    numbers = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in entry.items()}
    told = "  ".join(f"{name} {value}" for name, value in numbers.items())
    print(f"\r{told}", end="" if sys.stderr.isatty() else "\n", file=sys.stderr, flush=True)


def addresses(model: "Model") -> list[str]:
    """The addresses of a model, one line each; modules that differ in numbers alone share a line."""
    lines = ["roles"]
    layers = f"@0-{model.n_layers - 1}" if model.architecture and model.n_layers else ""
    for role, address in model.architecture.sites.items() if model.architecture else ():
        lines.append(f"  {role + (layers if '{}' in address else ''):<20} {address.replace('{}', 'LAYER')}")
    lines.append("modules (:in and :out)")
    seen: dict[str, list[str]] = {}
    for path, module in model.module.named_modules():
        seen.setdefault(f"{re.sub(r'[0-9]+', '{}', path)} {type(module).__name__}", []).append(path)
    for paths in seen.values():
        first, last = paths[0], paths[-1]
        kind = type(model.module.get_submodule(first)).__name__
        lines.append(
            f"  {(first if first == last else f'{first} … {last}') or '(the whole network)':<60} {kind}"
        )
    return lines


def _methods() -> "dict[str, Method]":
    from vesalius.method import methods

    return methods()


def _command(method: "Method") -> Any:
    """The command of one analysis: its parameters as options, its docstring as help."""

    def command(
        model: str,
        json: bool,
        save: Path | None,
        figure: Path | None,
        **given: Any,
    ) -> None:
        from vesalius.model import load
        from vesalius.terminal import progress_of, stderr, stdout, summary_table

        defaults = {name: parameter.default for name, parameter in method.parameters.items()}
        about = [given.pop(method.subject)] if method.subject else []
        chosen = {name: value for name, value in given.items() if value not in (defaults[name], (), [])}
        opened = load(model)
        with progress_of(1) as begin:
            begin(method.name)
            result = method.function(opened, *about, **chosen)
        if save is not None:
            stderr().print(f"saved in {result.save(save)}", markup=False, highlight=False)
        if figure is not None:
            result.figure().save(figure)
            stderr().print(f"drawn in {figure}", markup=False, highlight=False)
        if json:
            print(json_format.dumps(result.to_json()))
        else:
            stdout().print(summary_table((method.name, headline) for headline in result.headlines()))

    first = [_positional("model", MODEL)]
    if method.subject:
        first.append(_positional(method.subject, SUBJECTS[method.subject]))
    options = [
        _option(parameter) for parameter in method.parameters.values() if option_type(parameter.annotation)
    ]
    own = [
        _keyword("json", bool, False, typer.Option("--json", help="Print the whole result as JSON.")),
        _keyword(
            "save", Path | None, None, typer.Option(help="Save the result as this folder.", metavar="DIR")
        ),
        _keyword(
            "figure",
            Path | None,
            None,
            typer.Option(help="Draw the figure: .html, .svg, .png or .pdf.", metavar="FILE"),
        ),
    ]
    parameters = [*first, *options, *own]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    single = typer.Typer(add_completion=False, rich_markup_mode=None)
    single.command(_dashed(method.name), help=_help(method))(command)
    return typer.main.get_command(single)


def _option(parameter: inspect.Parameter) -> inspect.Parameter:
    default = None if parameter.default == () else parameter.default
    kind = option_type(parameter.annotation)
    return _keyword(parameter.name, kind if default is not None else kind | None, default, typer.Option())


def _positional(name: str, argument: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=Annotated[str, argument]
    )


def _keyword(name: str, kind: Any, default: Any, option: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[kind, option], default=default
    )


def option_type(annotation: Any) -> Any:
    """The type of a command-line option for a parameter's annotation, or None where a word cannot stand for it.

    What may be a word or something else (a name or a Model, a path or Images) is a word here.

    >>> option_type(int | None), option_type(list[str]), option_type(str | Path), option_type(dict)
    (<class 'int'>, list[str], <class 'str'>, None)
    """
    kinds = [annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        kinds = [kind for kind in typing.get_args(annotation) if kind is not types.NoneType]
    if len(kinds) > 1:
        return str if str in kinds else None
    kind = kinds[0]
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind in PLAIN or origin is typing.Literal:
        return kind
    if origin in (list, tuple) and inner and set(inner[1:]) <= {Ellipsis}:
        one = option_type(inner[0])
        return list[one] if one in PLAIN else None
    return None


def _help(method: "Method") -> str:
    """The docstring up to its example."""
    return (inspect.getdoc(method.function) or "").partition(">>>")[0].strip()


def _dashed(name: str) -> str:
    return name.replace("_", "-")


if __name__ == "__main__":
    main()
