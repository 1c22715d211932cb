"""The study of a dictionary: every analysis that fits, and the table of the paper's numbers beside these."""

import torch

import vesalius as vs
from tests.test_contracts import dictionary_of, reader
from vesalius.monosemanticity import ORDER, PUBLISHED


def test_every_analysis_of_a_dictionary_has_its_place_and_every_figure_its_analysis():
    about = {name for name, method in vs.methods().items() if method.subject == "dictionary"}
    assert about == set(ORDER)
    assert {published.method for published in PUBLISHED} <= about


def test_a_study_of_a_dictionary_ends_in_the_table(tmp_path):
    model = reader()
    dictionary = dictionary_of(model)
    drawn = torch.randn(24, 64, generator=torch.Generator().manual_seed(1))
    smaller = vs.SparseDictionary.of_directions("neurons@0", drawn, k=4, name="smaller")
    found = vs.decompose(
        model, dictionary, others=[smaller], other=smaller, out=tmp_path / "study", contexts=6
    )
    assert all(reason.endswith("give more text") for reason in found.failed.values()), found.failed
    table = vs.Result.load(sorted((tmp_path / "study").glob("*towards_monosemanticity"))[0])
    by_figure = {row["figure"]: row for row in table.rows}
    assert by_figure["F1"]["theirs"] == "0.79" and by_figure["F1"]["ours"] is not None
    assert by_figure["F15"]["theirs"] == "0.46"
    assert "a number that is not known" in table.scale
    assert found.report.exists() and "Towards Monosemanticity" in found.report.read_text()
