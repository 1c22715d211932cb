"""Circuits as factors: everything asked of the factors is what the multiplied-out matrix says."""

import time

import jaxtyping
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vesalius.access import record
from vesalius.architectures.toy import ToyTransformer
from vesalius.errors import VesaliusError
from vesalius.model import Model
from vesalius.weights import circuits
from vesalius.weights.composition import composition_matrix, random_composition
from vesalius.weights.copying import (
    copying_eigenvalues,
    copying_score,
    matching_circuit,
    matching_eigenvalues,
)
from vesalius.weights.factored import Factored
from vesalius.weights.top_k import top_k

sizes = st.integers(1, 12)
batches = st.sampled_from([(), (3,), (2, 3)])


def random_factored(m, r, n, batch=(), seed=0):
    draw = torch.Generator().manual_seed(seed)
    left = torch.randn(*batch, m, r, generator=draw, dtype=torch.float64)
    return Factored(left, torch.randn(*batch, r, n, generator=draw, dtype=torch.float64))


def close(one, other, tolerance=1e-10):
    torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@settings(deadline=None, max_examples=30)
@given(m=sizes, r=sizes, n=sizes, r2=sizes, p=sizes, batch=batches)
def test_factored_is_the_dense_matrix(m, r, n, r2, p, batch):
    matrix, other = random_factored(m, r, n, batch), random_factored(n, r2, p, batch, seed=1)
    dense = matrix.dense()
    assert matrix.shape == dense.shape
    close(matrix.T.dense(), dense.mT)
    close((-matrix).dense(), -dense)
    close((matrix @ other).dense(), dense @ other.dense())
    assert (matrix @ other).rank == min(r, r2)
    close((matrix @ other.dense()).dense(), dense @ other.dense())
    close((dense @ other).dense(), dense @ other.dense())
    close(matrix.norm(), torch.linalg.matrix_norm(dense))
    close(matrix.rows([0, m - 1]), dense[..., [0, m - 1], :])
    close(matrix.columns(n - 1), dense[..., :, n - 1])
    close(matrix.columns([n - 1, 0]), dense[..., :, [n - 1, 0]])
    close(Factored.sum([matrix, random_factored(m, r2, n, batch, seed=2)]).dense(),
          dense + random_factored(m, r2, n, batch, seed=2).dense())  # fmt: skip
    close(matrix.centred("columns").dense(), dense - dense.mean(-1, keepdim=True))
    both = (
        dense
        - dense.mean(-1, keepdim=True)
        - dense.mean(-2, keepdim=True)
        + dense.mean((-2, -1), keepdim=True)
    )
    close(matrix.centred("both").dense(), both)


@settings(deadline=None, max_examples=25)
@given(m=sizes, r=sizes, n=sizes, batch=batches)
def test_svd_is_that_of_the_dense_matrix(m, r, n, batch):
    matrix = random_factored(m, r, n, batch)
    U, S, Vh = matrix.svd()
    close((U * S[..., None, :]) @ Vh, matrix.dense())
    close(S, torch.linalg.svdvals(matrix.dense())[..., : S.shape[-1]])
    close(matrix.singular_values(), S)
    close(U.mT @ U, torch.eye(S.shape[-1], dtype=torch.float64).expand(*batch, -1, -1))


@pytest.mark.parametrize("size, rank", [(600, 16), (5, 9)])
def test_eigenvalues_come_from_the_small_product(size, rank):
    """G1: W_E W_OV W_U of V = 600, d = 96, h = 16 has the eigenvalues of an h x h matrix."""
    W_E, circuit, W_U = (random_factored(a, r, b, seed=s) for s, (a, r, b) in
                         enumerate([(size, 96, 96), (96, rank, 96), (96, 96, size)]))  # fmt: skip
    matrix = W_E.dense() @ circuit @ W_U.dense()
    dense = torch.linalg.eigvals(matrix.dense())
    dense = dense[dense.abs().argsort(descending=True)][:rank]
    found = matrix.eigenvalues()
    assert len(found) == min(rank, size)
    distance = (found[:, None] - dense).abs().amin(1)
    assert (distance / dense.abs().max()).max() < 1e-6
    close(found.sum(), dense.sum(), 1e-9)


def test_a_factor_without_batch_is_shared():
    shared, batch = random_factored(4, 2, 5), random_factored(5, 3, 6, batch=(3,))
    for product in (shared @ batch, shared @ batch.dense(), shared.dense() @ batch):
        assert product.shape == (3, 4, 6)
        close(product[1].dense(), shared.dense() @ batch.dense()[1])


def test_errors_say_the_shapes():
    matrix = random_factored(3, 2, 4)
    for wrong in (
        matrix.eigenvalues,
        matrix.diagonal,
        lambda: matrix[0],
        lambda: Factored(matrix.left, matrix.left),
    ):
        with pytest.raises(VesaliusError, match="3"):
            wrong()
    with pytest.raises(VesaliusError, match="one shape"):
        Factored.sum([matrix, matrix.T])
    close(random_factored(4, 2, 4).diagonal(), random_factored(4, 2, 4).dense().diagonal())


def ranked_dense(dense, k):
    """Reference: a stable sort, so that equal values keep the order of their index."""
    values, indices = dense.sort(dim=1, descending=True, stable=True)
    return values[:, :k], indices[:, :k]


@settings(deadline=None, max_examples=25)
@given(
    m=st.integers(1, 40), n=st.sampled_from([1, 5, 63, 600, 1024, 1025, 2500]), k=st.integers(1, 90),
    integers=st.booleans(), block=st.sampled_from([1, 7, 128]), centre=st.sampled_from([None, "rows"]),
)  # fmt: skip
def test_top_k_is_a_stable_sort(m, n, k, integers, block, centre):
    draw = torch.Generator().manual_seed(m * n)
    left, right = (torch.randn(*s, generator=draw, dtype=torch.float64) for s in ((m, 3), (3, n)))
    if integers:  # many ties, and sums without rounding
        left, right, centre = left.round(), right.round(), None
    matrix, k = Factored(left, right), min(k, n)
    for ranked, dense in (
        (top_k(matrix, k, centre=centre, block=block), matrix.centred(centre).dense()),
        (top_k(matrix.T, k, centre=None, along="columns", block=block), matrix.dense()),
    ):
        values, indices = ranked_dense(dense, k)
        close(ranked.values, values)
        close(dense.gather(1, ranked.indices), values)
        assert all(len(set(row)) == k for row in ranked.indices.tolist())
        if integers:
            assert torch.equal(ranked.indices, indices)


def test_top_k_removes_what_softmax_ignores():
    matrix = random_factored(30, 4, 50)
    shifted = Factored.sum(
        [matrix, Factored(torch.arange(30.0).double()[:, None], torch.ones(1, 50).double())]
    )
    close(shifted.top_k(3).values, matrix.top_k(3).values)
    close(shifted.top_k(3, along="columns").values, matrix.top_k(3, along="columns").values)
    assert not torch.equal(
        shifted.top_k(3, along="columns", centre=None).indices, matrix.top_k(3, along="columns").indices
    )
    assert matrix.top_k(3, along="columns").values.shape == (50, 3)


def test_top_k_refuses_what_has_no_order():
    matrix = random_factored(3, 2, 4)
    for wrong in (
        Factored(matrix.left * torch.nan, matrix.right),
        Factored(matrix.left, matrix.right * torch.inf),
    ):
        with pytest.raises(VesaliusError, match="NaN"):
            wrong.top_k(1)
    with pytest.raises(VesaliusError, match="4 entries"):
        matrix.top_k(5)
    with pytest.raises(VesaliusError, match="batch"):
        random_factored(3, 2, 4, batch=(2,)).top_k(1)


def toy(**changes):
    sizes = {"n_layers": 2, "d_model": 16, "n_heads": 2, "d_vocab": 11, "n_ctx": 9, "norm": True} | changes
    model = Model(ToyTransformer(**sizes))
    draw = torch.Generator().manual_seed(3)
    for name, weight in model.module.named_parameters():
        if "norm" in name:
            weight.data += 0.3 * torch.randn(weight.shape, generator=draw)
    return model


def test_circuits_without_folding_are_products_of_weights():
    model = toy()
    W_E, W_U = model.weight("W_E"), model.weight("W_U")
    W_Q, W_K, W_V, W_O = (model.weight(role, 1)[1] for role in ("W_Q", "W_K", "W_V", "W_O"))
    ignore = {"norm": "ignore"}
    close(circuits.full_qk(model, 1, 1, **ignore).dense(), W_E @ W_Q @ W_K.T @ W_E.T / 8**0.5, 1e-4)
    close(circuits.full_ov(model, 1, 1, **ignore).dense(), W_E @ W_V @ W_O @ W_U, 1e-4)
    close(circuits.direct_path(model, **ignore).dense(), W_E @ W_U, 1e-4)
    several = circuits.full_ov(model, 1, [1, (0, 1)], **ignore)
    one, other = circuits.full_ov(model, 1, 1, **ignore), circuits.full_ov(model, 0, 1, **ignore)
    close(several.dense(), one.dense() + other.dense(), 1e-4)


def test_folding_does_what_the_norm_does_up_to_its_scale():
    """Where the norms' scales are put back by hand, the folded circuits are the model."""
    model = toy(n_layers=1, positions="rotary")  # at relative offset 0 rotation does nothing
    for name, weight in model.module.named_parameters():
        if "norm" in name and name.endswith("bias"):
            weight.data.zero_()
    ids = torch.arange(11)[:, None]  # texts of one token: each attends to itself
    W_E = model.weight("W_E")
    with record(model, ["resid_post@0", "q@0", "k@0"]) as acts:
        logits = model.logits(ids)[:, 0]
    resid = acts["resid_post@0"][:, 0]
    scale_1, scale_f = ((x.var(1, correction=0, keepdim=True) + 1e-5).sqrt() for x in (W_E, resid))
    ov = circuits.full_ov(model, 0, [0, 1])
    expected = (circuits.direct_path(model).dense() + ov.dense() / scale_1) / scale_f
    close(logits - logits.mean(1, keepdim=True), expected, 1e-4)
    scores = torch.einsum("qhd,khd->hqk", acts["q@0"][:, :, 0], acts["k@0"][:, :, 0]) / 8**0.5
    for head in range(2):
        close(scores[head], circuits.full_qk(model, 0, head).dense() / scale_1 / scale_1.T, 1e-4)


def family(name, **sizes):
    import transformers

    config = getattr(transformers, f"{name}Config" if name != "Gemma3" else "Gemma3TextConfig")(
        vocab_size=19, hidden_size=24, num_hidden_layers=1, num_attention_heads=4, intermediate_size=24,
        attn_implementation="sdpa", pad_token_id=0, bos_token_id=1, eos_token_id=1, **sizes,
    )  # fmt: skip
    model = Model(getattr(transformers, f"{name}ForCausalLM")(config))
    draw = torch.Generator().manual_seed(3)
    for weight in model.module.parameters():
        weight.data = 0.3 * torch.randn(weight.shape, generator=draw)
    return model


@pytest.mark.parametrize(
    "name, sizes",
    [
        ("Llama", {"num_key_value_heads": 2}),
        ("Olmo2", {"num_key_value_heads": 2}),
        ("Gemma3", {"num_key_value_heads": 1, "head_dim": 8}),
    ],
)
def test_shared_keys_and_every_place_of_a_norm(name, sizes):
    """The share of each head in attn_out of one-token texts is its OV circuit, up to the norms' scales."""
    model = family(name, **sizes)
    ids = torch.arange(19)[:, None]
    with record(model, ["resid_pre@0", "attn_out@0", "q@0", "k@0"]) as acts:
        model(ids)
    resid, out = acts["resid_pre@0"][:, 0], acts["attn_out@0"][:, 0]
    summed = sum(resid @ circuits.ov(model, 0, head).dense() for head in range(4))
    close(torch.nn.functional.normalize(out, dim=1), torch.nn.functional.normalize(summed, dim=1), 1e-4)
    for head in range(4):
        scores = (acts["q@0"][:, head, 0] * acts["k@0"][:, head, 0]).sum(1)
        folded = torch.einsum("td,de,te->t", resid, circuits.qk(model, 0, head).dense(), resid)
        assert torch.equal(scores.sign(), folded.sign())


def test_circuits_refuse_heads_that_are_not_there():
    model = toy()
    for wrong in (
        lambda: circuits.qk(model, 0, 2),
        lambda: circuits.ov(model, 2, 0),
        lambda: circuits.full_ov(model, 0, []),
        lambda: circuits.qk(model, 0, 0, norm="unfold"),
    ):
        with pytest.raises((VesaliusError, jaxtyping.TypeCheckError)):
            wrong()


def test_norm_handling_says_what_was_done():
    assert "scale and biases ignored" in circuits.norm_handling(toy(), "fold")
    assert "relative offset 0" in circuits.norm_handling(toy(positions="rotary"), "ignore")
    assert circuits.norm_handling(toy(norm=False), "fold").startswith("no norm; content only")


@pytest.mark.parametrize("mode", ["Q", "K", "V"])
@pytest.mark.parametrize("norm", ["fold", "ignore"])
def test_composition_is_the_ratio_of_dense_norms(mode, norm):
    model = toy(n_layers=3)
    scores = composition_matrix(model, mode, norm=norm)
    kernel = composition_matrix(model, mode, measure="projection_kernel", norm=norm)
    for early, late in [((0, 1), (2, 0)), ((1, 0), (2, 1))]:
        W_A = circuits.ov(model, *early, norm=norm).dense()
        W_B = (circuits.ov if mode == "V" else circuits.qk)(model, *late, norm=norm).dense()
        W_B = W_B.T if mode == "K" else W_B
        close(scores[*early, *late], (W_A @ W_B).norm() / (W_A.norm() * W_B.norm()), 1e-5)
        U, V = (torch.linalg.svd(W).Vh[:8] for W in (W_A, W_B.T))
        close(kernel[*early, *late], (U @ V.T).square().sum() / 8, 1e-5)
    assert scores[1, :, :2].isnan().all() and not scores[:2, :, 2].isnan().any()


def test_composition_refuses_what_it_does_not_know():
    for wrong in ({"mode": "q"}, {"mode": "K", "measure": "cosine"}):
        with pytest.raises((VesaliusError, jaxtyping.TypeCheckError)):
            composition_matrix(toy(), **wrong)


def test_composition_of_random_heads_is_the_baseline():
    """G1: the mean is within 3% of 1/√d_model, and of d_head/d_model for subspaces."""
    model = Model(ToyTransformer(n_layers=2, d_model=128, n_heads=4, d_vocab=11, n_ctx=9))
    baseline = random_composition(model)
    assert abs(baseline.mean * 128**0.5 - 1) < 0.03
    assert abs(random_composition(model, measure="projection_kernel").mean * 128 / 32 - 1) < 0.03
    assert (composition_matrix(model, "K")[0, :, 1] - baseline.mean).abs().max() < 8 * baseline.sd


def test_one_subspace_scores_one_and_a_dead_head_zero():
    model = toy(norm=False)
    attention = [block.attn for block in model.module.blocks]
    attention[1].v_proj.weight.data[:8] = (
        attention[0].o_proj.weight.data[:, :8].T
    )  # head 1.0 reads what 0.0 writes
    attention[0].o_proj.weight.data[:, 8:] = 0  # head 0.1 writes nothing
    kernel = composition_matrix(model, "V", measure="projection_kernel")
    close(kernel[0, 0, 1, 0].item(), 1.0, 1e-5)
    assert kernel[0, 1, 1].eq(0).all() and composition_matrix(model, "V")[0, 1, 1].eq(0).all()
    assert copying_score(copying_eigenvalues(model))[0, 1] == 0


@pytest.mark.parametrize("norm", ["fold", "ignore"])
def test_eigenvalues_of_all_heads_are_those_of_the_vocabulary_table(norm):
    model = toy(n_layers=3)
    copying, matching = copying_eigenvalues(model, norm=norm), matching_eigenvalues(model, (0, 1), norm=norm)
    for found, circuit in (
        (copying[2, 1], circuits.full_ov(model, 2, 1, norm=norm)),
        (matching[2, 0], matching_circuit(model, (0, 1), (2, 0), norm=norm)),
    ):
        dense = torch.linalg.eigvals(circuit.dense().double())
        dense = dense[dense.abs().argsort(descending=True)][:8].to(torch.cfloat)
        assert ((found[:, None] - dense).abs().amin(1) / dense.abs().max()).max() < 1e-4
        close(copying_score(found), copying_score(dense), 1e-4)
    assert matching[0].isnan().all()
    with pytest.raises(VesaliusError, match="later layer"):
        matching_circuit(model, (1, 0), (1, 1))


def test_copying_scores_of_random_heads_are_about_zero():
    """G1: |mean| < .02, and sd within 30% of .044 at (d_model 256, d_head 32)."""
    scores = copying_score(
        copying_eigenvalues(
            Model(ToyTransformer(n_layers=12, d_model=256, n_heads=8, d_vocab=600, n_ctx=9)), norm="ignore"
        )
    )
    assert scores.mean().abs() < 0.02 and 0.7 < scores.std() / 0.044 < 1.3


@pytest.mark.bench
def test_top_k_runs_at_the_speed_of_the_multiplication():
    """At V = 50,257, r = 64, k = 8, at least 70% of the rate of the bare blocked product into one buffer."""
    draw = torch.Generator().manual_seed(0)
    matrix = Factored(torch.randn(50_257, 64, generator=draw), torch.randn(64, 50_257, generator=draw))
    entries, buffer = matrix.right.T.contiguous(), torch.zeros(50_257, 128)
    start = time.process_time()
    for lines in matrix.left[:-81].split(128):
        torch.matmul(entries, lines.T, out=buffer)
    between = time.process_time()
    matrix.top_k(8)
    ratio = (between - start) / (time.process_time() - between)
    assert ratio >= 0.7, ratio
