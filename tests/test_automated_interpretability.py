"""Explanations of latents that were planted, and of a server that answers well, answers nonsense, or dies."""

import functools
import json
import re
import threading
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files

import pytest
import torch

import vesalius as vs
from vesalius.dictionaries import SparseDictionary
from vesalius.errors import VesaliusError
from vesalius.interpreters import Endpoint, Explained, Nonsense, Snippet, TokenStatistics, interpreter_of
from vesalius.interpreters.layout import EXPLAINED, SCORED, layout_of
from vesalius.interpreters.scores import spearman
from vesalius.methods.features.automated_interpretability import automated_interpretability
from vesalius.testbed import random_attn

QUICK = {"contexts": 60, "length": 48, "least": 8}


@functools.cache
def reader() -> vs.Model:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(files("vesalius.zoo") / "tokenizer.json"))
    module = random_attn(
        d_model=64, n_heads=4, d_vocab=tokenizer.get_vocab_size(), n_ctx=128, norm=True, d_mlp=64
    ).module
    return vs.Model(module, tokenizer=tokenizer, bos=0, name="random-reader")


@functools.cache
def detectors() -> SparseDictionary:
    """Each latent fires on one token, a common one, and on no other."""
    model = reader()
    ids = model.tokens(vs.data.text.heldout_text())[0]
    common = ids.bincount(minlength=model.d_vocab).topk(12).indices
    W_E = model.weight("W_E").float()
    directions = torch.nn.functional.normalize(W_E[common], dim=1)
    found = SparseDictionary.of_directions("resid_pre@0", directions)
    own = (W_E @ directions.T)[common].diagonal()
    return replace(found, threshold=0.7 * own)


def test_latents_of_single_tokens_are_explained_and_beat_every_control():
    result = automated_interpretability(reader(), detectors(), **QUICK)
    scores = {name: table[:, 0].nanmean().item() for name, table in result.scores.items()}
    assert scores["latents"] > 0.95
    assert max(scores["shuffled"], scores["random"]) < 0.5
    assert result.scores["latents"][:, 2:4].nanmean(0).min() > 0.9  # detection and fuzzing
    assert result.single["latents"] == 1
    simulation = result.headlines()[0]
    assert simulation.evidence and simulation.interval[0] > simulation.control
    assert (
        automated_interpretability(reader(), detectors(), **QUICK).to_json()["scores"]
        == result.to_json()["scores"]
    )


def test_explanation_and_scoring_share_no_context():
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(80, 40, generator=generator) * (torch.rand(80, 40, generator=generator) < 0.2)
    ids, counts = torch.randint(1, 9, (80, 40), generator=generator), torch.ones(80, 40, dtype=torch.bool)
    counts[:, 0] = False
    layout = layout_of(values, ids, counts, generator=generator)
    assert len(layout.explained) == 49 == sum(EXPLAINED.values()) + 11 * EXPLAINED["interval"]
    assert len(layout.scored) == 60 == sum(SCORED.values()) + 11 * SCORED["interval"]
    assert set(layout.explained.contexts.tolist()).isdisjoint(layout.scored.contexts.tolist())
    assert (layout.explained.starts >= 1).all() and (layout.scored.starts + 9 <= 40).all()
    assert not (layout.silent.of(values) > 0).any()


def test_spearman_is_that_of_scipy_and_0_of_constants():
    stats = pytest.importorskip("scipy.stats")
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randint(0, 9, (2, 200), generator=generator).float()
    assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-9)
    assert spearman(torch.zeros(9), torch.arange(9.0)) == 0
    heavy = torch.cat([torch.ones(100), torch.zeros(100)])
    assert spearman(torch.cat([a[:100], a[:100]]), torch.cat([a[:100], -a[:100]]), heavy) == pytest.approx(
        1, abs=1e-2
    )


def test_statistics_of_tokens_are_read_back_from_their_own_words():
    shown = Explained(
        (Snippet((' "q"', " a", " b"), (0, 9, 0)), Snippet((" c", " a", " 7"), (0, 9, 4))) * 4,
        (" running",),
        (),
    )
    offline = TokenStatistics()
    words = offline.explain(shown)
    assert json.dumps(' "q"') in words and 'promotes " running"' in words
    levels = offline.simulate(words, [(" x", " a", " 7"), (' "q"', " b", " 12")])
    assert levels[0][1] > 7 and levels[1][1] == 0 and 2 < levels[0][2] < 5
    assert offline.detect(words, [(" a",), (" b", " c")]) == [True, False]
    assert offline.fuzz(words, [((" a", " b"), (True, False)), ((" a", " b"), (False, True))]) == [
        True,
        False,
    ]
    assert offline.promotes(words, [" walking", "42"]) == [True, False]


class Server:
    """Speaks the OpenAI protocol; `manners` is how."""

    def __init__(self) -> None:
        self.asked, self.manners, self.dies_after = 0, "well", 10**9

    def answer(self, question: str) -> tuple[int, str]:
        self.asked += 1
        if self.asked > self.dies_after:
            return 503, ""
        if self.manners == "moody" and self.asked % 2:
            return 429, ""
        if self.manners == "nonsense":
            return 200, "I am a teapot"
        lines = [json.loads(line) for line in re.findall(r"^\d+\. (.*)$", question, re.MULTILINE)]
        if "explanation" in question.rpartition("\n")[2]:
            return 200, 'Here it is: {"explanation": "fires on the"}'
        if '"levels"' in question:
            return 200, json.dumps({"levels": [[9 * (token == " the") for token in line] for line in lines]})
        return 200, json.dumps({"answers": [int("the" in line) for line in lines]})


@contextmanager
def serving():
    server = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, words = server.answer(body["messages"][-1]["content"])
            reply = json.dumps({"choices": [{"message": {"content": words}}]}).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *parts):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server, f"http://127.0.0.1:{http.server_port}/v1"
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


def asked(url: str, folder, **more):
    return automated_interpretability(
        reader(),
        detectors(),
        explainer=url,
        answers=str(folder),
        latents=[0, 1],
        n_latents=2,
        twins=0,
        **QUICK,
        **more,
    )


@pytest.fixture
def quick_pauses(monkeypatch):
    monkeypatch.setattr("vesalius.interpreters.endpoint.time.sleep", lambda seconds: None)


def test_a_server_that_answers_is_asked_once(tmp_path):
    pytest.importorskip("httpx")
    with serving() as (server, url):
        first = asked(url, tmp_path)
        assert first.explanations == ["fires on the"] * 2 and not first.failures
        assert first.scores["latents"].isfinite().all()
        before = server.asked
        again = asked(url, tmp_path)
        assert server.asked == before and again.to_json()["scores"] == first.to_json()["scores"]
        assert all(headline.evidence is None for headline in first.headlines())  # without a twin


def test_a_server_in_a_bad_mood_is_asked_again(tmp_path, quick_pauses):
    pytest.importorskip("httpx")
    with serving() as (server, url):
        server.manners = "moody"
        assert not asked(url, tmp_path).failures


def test_nonsense_costs_latents_and_is_reported(tmp_path, quick_pauses):
    pytest.importorskip("httpx")
    with serving() as (server, url):
        server.manners = "nonsense"
        result = asked(url, tmp_path)
        assert result.explanations == ["", ""] and not list(tmp_path.iterdir())
        assert {(condition, latent) for condition, latent, _ in result.failures} >= {
            ("latents", 0),
            ("latents", 1),
        }
        assert "what is no answer: no JSON in 'I am a teapot'" in result.failures[0][2]
        assert "answers failed" in result.summary()
        result.figure().to_json()
        with pytest.raises(Nonsense):
            Endpoint(url, attempts=2).explain(Explained((Snippet((" a",), (1,)),)))
        server.manners = "well"
        assert not asked(url, tmp_path).failures


def test_a_server_that_dies_loses_nothing(tmp_path, quick_pauses):
    pytest.importorskip("httpx")
    with serving() as (server, url):
        whole = asked(url, tmp_path / "whole")
        needed, server.asked = server.asked, 0
        server.dies_after = needed - 5
        partial = asked(url, tmp_path / "kept")
        assert any(
            "does not answer after 4 attempts (HTTP 503)" in reason for _, _, reason in partial.failures
        )
        assert len(list((tmp_path / "kept").iterdir())) == needed - 5
        server.asked, server.dies_after = 0, 10**9
        resumed = asked(url, tmp_path / "kept")
        assert server.asked == 5
        assert resumed.to_json()["scores"] == whole.to_json()["scores"]
        server.asked, server.dies_after = 0, 0
        with pytest.raises(VesaliusError, match="does not answer"):
            asked(url, tmp_path / "never")


def test_what_cannot_be_asked_says_why(quick_pauses):
    with pytest.raises(VesaliusError, match="is no interpreter"):
        interpreter_of("oracle")
    with pytest.raises(VesaliusError, match="0 to 11"):
        automated_interpretability(reader(), detectors(), latents=[12], **QUICK)
    with pytest.raises(VesaliusError, match="no latent asked for is active on 1000000"):
        automated_interpretability(reader(), detectors(), contexts=4, length=16, least=10**6)
    pytest.importorskip("httpx")
    with pytest.raises(VesaliusError, match="does not answer after 4 attempts"):
        automated_interpretability(reader(), detectors(), explainer="http://127.0.0.1:9/v1", twins=0, **QUICK)
