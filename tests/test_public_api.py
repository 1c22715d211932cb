"""What `vesalius` offers is exactly one list, and the analyses."""

import importlib
import inspect

import pytest

import vesalius as vs

PUBLIC = [
    "ActivationStore", "ControlVector", "Dictionary", "Feature", "Headline", "Method", "Model", "Plan",
    "Preprocessing", "ProbeDictionary", "Recording", "Result", "Site", "SparseDictionary", "Study",
    "TensorRows", "VesaliusError", "WeightDiff", "add", "april", "at", "batch_topk", "clamp",
    "control_vector", "decompose", "direction", "dissect", "dossier", "feature_index",
    "fit_cross_layer_transcoder", "fit_crosscoder", "fit_ica", "fit_many", "fit_nmf", "fit_pca", "fit_sae",
    "fit_transcoder", "freeze", "gated", "generate", "harvest", "intervene", "jump_relu", "load",
    "matryoshka", "mean", "method", "methods", "neurons", "open_corpus", "open_index", "open_pairs",
    "open_store", "patch", "project_out", "read_control_vector", "read_dictionary", "record", "relu_l1",
    "resample", "set_to", "sites_of", "topk", "with_association", "without_direction",
    "write_control_vector", "zero",
]  # fmt: skip


def test_the_list_is_the_list():
    assert vs.__all__ == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_every_name_is_there_and_documented(name):
    assert inspect.getdoc(getattr(vs, name)), f"vs.{name} has no docstring"


@pytest.mark.parametrize("name", sorted(vs.methods()))
def test_every_analysis_is_an_attribute(name):
    assert getattr(vs, name) is vs.methods()[name].function
    assert name in dir(vs)


def test_functions_stay_functions_after_their_modules_are_imported():
    for module in ("dissection", "method", "methods"):
        importlib.import_module(f"vesalius.{module}")
    assert callable(vs.dissect) and callable(vs.methods) and callable(vs.method)


def test_a_wrong_name_is_answered_with_the_nearest():
    with pytest.raises(AttributeError, match="the nearest is copying_heads"):
        vs.copying_head
