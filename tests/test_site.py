"""The address grammar: read, printed back canonically, and helpful when wrong."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vesalius.errors import VesaliusError
from vesalius.site import GLOBAL_ROLES, LAYERED_ROLES, PORTS, Site

names = st.lists(st.from_regex(r"[a-z][a-z_]{0,6}|[0-9]{1,2}", fullmatch=True), min_size=1, max_size=4).map(
    ".".join
)
indices = st.one_of(
    st.none(),
    st.integers(0, 500),
    st.builds(slice, st.none() | st.integers(0, 9), st.none() | st.integers(0, 9)),
    st.lists(st.integers(0, 99), min_size=2, max_size=4).map(tuple),
)
layers = st.one_of(st.just("*"), st.integers(0, 90).map(str), st.just("0-3"), st.just("0,2-4"))
paths = st.fixed_dictionaries(
    {"path": names, "port": st.sampled_from(PORTS), "call": st.none() | st.integers(0, 9), "index": indices}
)
roles = st.fixed_dictionaries({"role": st.sampled_from(LAYERED_ROLES), "layers": layers, "index": indices})
whole = st.fixed_dictionaries({"role": st.sampled_from(GLOBAL_ROLES), "index": indices})


@given(paths | roles | whole)
def test_printing_and_parsing_are_inverse(fields):
    site = Site(**fields)
    assert Site.parse(str(site)) == site
    assert str(Site.parse(str(site))) == str(site)
    assert hash(Site.parse(str(site))) == hash(site)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("patern@0", "nearest is pattern"),
        ("pattern", "pattern@0"),
        ("logits@0", "'logits' alone"),
        ("block:outt", "in, out, q, k, v, pattern, z"),
        ("block[1:2:3]", "[0:4]"),
        ("two words", "PATH[:PORT]"),
        ("pattern@1:out", "takes no :PORT"),
        ("pattern@0--1", "expected a number"),
    ],
)
def test_a_wrong_site_is_answered_with_what_was_expected(wrong, said):
    with pytest.raises(VesaliusError) as error:
        Site.parse(wrong)
    assert said in str(error.value)
    assert wrong.split("@")[0].split(":")[0].split("[")[0] in str(error.value)


def test_layers_beyond_the_model_are_refused():
    with pytest.raises(VesaliusError, match="layers 0 to 3"):
        Site.parse("z@2-5").layer_numbers(4)
