"""What every registered analysis owes its reader, checked for all of them; a new method needs no smoke test.

Each method runs with its defaults on the first network of the testbed that has what it needs: an induction
circuit written by hand, whose idle heads are all zeros, a random transformer that reads text, or a family of curve
detectors written by hand. One that asks for checkpoints is given three random networks on disk; one about a
feature, a unit of the usual layer; one about two networks, the same network's random twin. `QUICK` holds what
makes an analysis of pictures a matter of seconds.
"""

import dataclasses
import functools
import inspect
import json
import math
import re
import sys
import tempfile
import types
import typing
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import vesalius as vs
from vesalius.data.images import Images
from vesalius.dictionaries import Dictionary, SparseDictionary
from vesalius.figures import Figure
from vesalius.result import Headline, Result
from vesalius.testbed import curve_network, handwritten_induction, random_attn

NAMES = sorted(vs.methods())
PLAIN = {int, float, bool, str, Path, type(None)}
OBJECTS = {Images, vs.Model, Dictionary, vs.ActivationStore, torch.Tensor}  # what a word may stand for
QUICK = {"steps": 8, "n_images": 48, "n_examples": 6, "angles": 36, "games": 60, "held_out": 30, "cases": 60}
SOURCE = re.compile(r"arXiv|transformer-circuits\.pub|\b(1[89]|20)\d\d\b")


@functools.cache
def reader() -> vs.Model:
    """A random transformer with a norm and the tokenizer of the zoo."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(files("vesalius.zoo") / "tokenizer.json"))
    module = random_attn(
        d_model=32, n_heads=4, d_vocab=tokenizer.get_vocab_size(), n_ctx=256, norm=True, d_mlp=64
    ).module
    return vs.Model(module, tokenizer=tokenizer, bos=0, name="random-reader")


@functools.cache
def player(seed: int = 0) -> vs.Model:
    """A random transformer of the sizes of one that plays Othello on 4×4."""
    return random_attn(d_model=32, d_vocab=13, n_ctx=12, d_mlp=64, norm=True, positions="residual", seed=seed)


@functools.cache
def model_for(name: str) -> vs.Model:
    fitting = (make() for make in (handwritten_induction, reader, curve_network, player))
    return next(model for model in fitting if fits(vs.methods()[name], model))


def fits(method, model: vs.Model) -> bool:
    """Whether it has what the method needs, and a usual site if that is about a dictionary."""
    without = method.subject == "dictionary" and not model.kinds & {"mlp", "images"}
    return not method.missing(model) and not without


@functools.cache
def checkpoints() -> list[str]:
    """Three random networks in folders as the zoo has them."""
    home = Path(tempfile.mkdtemp())
    for step in (0, 10, 100):
        module = random_attn(d_vocab=41, n_ctx=49, seed=step).module
        folder = home / f"step-{step}"
        folder.mkdir()
        (folder / "card.json").write_text(json.dumps({"shape": module.shape}))
        save_file(module.state_dict(), folder / "model.safetensors")
    return [str(folder) for folder in sorted(home.iterdir())]


def dictionary_of(model: vs.Model, *, size: float = 1.5, seed: int = 0) -> SparseDictionary:
    """Random directions of the usual site: as many as half again its units."""
    site = model.site() if "images" in model.kinds else "neurons@0"
    width = model.map_shape(site)[0] if "images" in model.kinds else model.shape.d_mlp
    drawn = torch.randn(int(width * size), width, generator=torch.Generator().manual_seed(seed))
    return SparseDictionary.of_directions(site, drawn / drawn.norm(dim=1, keepdim=True), k=8)


def run(name: str, model: vs.Model) -> Result:
    """A method with its defaults; checkpoints, which no testbed network has, are made."""
    method = vs.methods()[name]
    made = {"checkpoints": checkpoints, "other": lambda: model.random_twin(5)}
    if method.subject == "dictionary":
        made["other"] = lambda: dictionary_of(model, seed=1)
        made["others"] = lambda: [dictionary_of(model, size=2.5, seed=1)]
    given = QUICK | {key: make() for key, make in made.items() if key in method.parameters}
    unit = f"{model.site()}[0]" if "images" in model.kinds else "resid_post@0[5]"
    about = {"feature": lambda: [unit], "dictionary": lambda: [dictionary_of(model)]}
    given_about = about[method.subject]() if method.subject else []
    return method.function(model, *given_about, **{k: v for k, v in given.items() if k in method.parameters})


@functools.cache
def result_of(name: str) -> Result:
    return run(name, model_for(name))


@pytest.fixture(params=NAMES, scope="module")  # one analysis after the other: each is run once
def name(request) -> str:
    return request.param


def no_constants(text: str) -> typing.NoReturn:
    raise ValueError(f"{text} is not JSON")


def test_the_result_is_frozen_and_says_where_it_comes_from(name):
    result, model = result_of(name), model_for(name)
    assert isinstance(result, Result) and dataclasses.is_dataclass(result)
    field = dataclasses.fields(result)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(result, field, None)
    assert result.provenance["method"] == name
    assert result.provenance["model_hash"] == model.hash
    assert set(result.provenance["parameters"]) == set(vs.methods()[name].parameters)
    assert set(result.provenance["versions"]) >= {"vesalius", "torch", "python"}


def test_a_saved_result_loads_equal(name, tmp_path):
    result = result_of(name)
    folder = result.save(tmp_path / "run")
    loaded = Result.load(folder)
    assert type(loaded) is type(result)
    assert loaded.to_json() == result.to_json()
    for field in dataclasses.fields(result):
        before, after = getattr(result, field.name), getattr(loaded, field.name)
        if isinstance(before, torch.Tensor):
            assert before.dtype == after.dtype and torch.equal(before.nan_to_num(), after.nan_to_num())
    assert loaded.summary() == result.summary()
    assert loaded.figure().to_json() == result.figure().to_json()


def test_json_is_strict(name, tmp_path):
    result = result_of(name)
    document = json.dumps(result.to_json(), allow_nan=False)
    assert json.loads(document, parse_constant=no_constants)["kind"] == type(result).__name__
    stored = (result.save(tmp_path / "run") / "result.json").read_text(encoding="utf-8")
    json.loads(stored, parse_constant=no_constants)


def test_every_headline_has_a_control_or_says_it_only_describes(name):
    headlines = result_of(name).headlines()
    assert headlines and all(isinstance(headline, Headline) for headline in headlines)
    for headline in headlines:
        assert headline.claim.strip()
        assert isinstance(headline.value, int | float | str)
        assert headline.evidence in (True, False, None)
        if headline.evidence is None:
            continue
        assert headline.control is not None or headline.note, f"'{headline.claim}' judges without a control"
        numbers = [headline.value, headline.control, *(headline.interval or ())]
        assert not any(isinstance(number, float) and math.isnan(number) for number in numbers), headline
        if headline.interval is not None:
            assert headline.interval[0] <= headline.interval[1]


def test_there_is_a_control_somewhere(name):
    assert any(
        headline.control is not None or headline.evidence is not None
        for headline in result_of(name).headlines()
    )


def test_the_figure_is_json_and_a_picture(name, tmp_path):
    figure = result_of(name).figure()
    assert isinstance(figure, Figure) and figure.title.strip()
    json.dumps(figure.to_json(), allow_nan=False)
    assert "<script" in figure.html() and "http://" not in re.sub(
        r"http://www\.w3\.org\S*", "", figure.html()
    )
    figure.save(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_seed_gives_the_same_bits(name):
    state = torch.get_rng_state()
    again = run(name, model_for(name))
    assert torch.equal(torch.get_rng_state(), state), "the global random generator was used"
    first, second = result_of(name).to_json(), again.to_json()
    assert {k: v for k, v in first.items() if k != "provenance"} == {
        k: v for k, v in second.items() if k != "provenance"
    }


def test_the_model_is_left_as_it_was(name):
    model = model_for(name)
    before = model.hash
    del model.hash
    assert model.hash == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.module.modules())
    assert all(parameter.grad is None for parameter in model.module.parameters())
    assert not model.module.training


def test_the_docstring_says_what_and_where_from(name):
    function = inspect.unwrap(vs.methods()[name].function)
    text = inspect.getdoc(function)
    first = text.partition("\n")[0]
    assert first.endswith(".") and len(first) <= 110, first
    module = sys.modules[function.__module__]
    assert SOURCE.search(f"{module.__doc__} {text}"), "no source is named"


def test_every_parameter_has_a_plain_type_and_a_default_of_it(name):
    for parameter in vs.methods()[name].parameters.values():
        assert parameter.kind is parameter.KEYWORD_ONLY and parameter.default is not parameter.empty
        leaves = list(plain_types(parameter.annotation))
        objects = OBJECTS if str in leaves else set()
        assert set(leaves) <= PLAIN | objects, f"{parameter.name}: {parameter.annotation}"


def test_the_docstring_explains_parameters_that_have_no_default_value(name):
    function = inspect.unwrap(vs.methods()[name].function)
    for parameter in vs.methods()[name].parameters.values():
        if parameter.default is None:
            assert f"`{parameter.name}`" in inspect.getdoc(function), f"{parameter.name} is not explained"


def test_chance_alone_is_no_evidence(name):
    """On a random transformer; the rate of false alarms over many of them is G17's."""
    method = vs.methods()[name]
    networks = (
        random_attn(d_vocab=41, n_ctx=49, seed=11),
        reader(),
        curve_network().random_twin(11),
        player(11),
    )
    model = next(network for network in networks if fits(method, network))
    fired = [headline.claim for headline in run(name, model).headlines() if headline.evidence]
    assert not fired, fired


def plain_types(annotation) -> typing.Iterator[type]:
    """The types an annotation is made of: of list[int] | None, int and None; of a Literal, its values'."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        yield from (type(value) for value in args)
    elif origin in (typing.Union, types.UnionType, list, tuple):
        for arg in args:
            if arg is not Ellipsis:
                yield from plain_types(arg)
    else:
        yield annotation
