"""Comparisons of dictionaries find what was planted: shared directions, children of a latent, clusters.

Truth: a network whose residual stream at each token is a sparse sum of directions that we chose, and dictionaries of
just those directions, in an order that only the test knows.
"""

from functools import cache

import pytest
import torch
from torch import Tensor

import vesalius as vs
from vesalius.architectures.toy import ToyTransformer
from vesalius.dictionaries import SparseDictionary
from vesalius.methods.features.feature_splitting import feature_splitting
from vesalius.methods.features.feature_umap import feature_umap
from vesalius.methods.universality.feature_universality import feature_universality

SITE, TOKENS, WIDTH = "resid_pre@0", 400, 96


def orthonormal(count: int, seed: int) -> Tensor:
    drawn = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(seed))
    return torch.linalg.qr(drawn).Q[:count]


def sparse(features: int, share: float, seed: int) -> Tensor:
    """Codes `[token, feature]`, each present in a share of the tokens and there uniform in 0.5..1.5."""
    drawn = torch.rand(2, TOKENS, features, generator=torch.Generator().manual_seed(seed))
    return (drawn[0] < share) * (0.5 + drawn[1])


def network(stream: Tensor, logits: Tensor | None = None) -> vs.Model:
    """What the residual stream holds is a row of `stream` for each token; `logits` `[width, token]` reads it."""
    module = ToyTransformer(n_layers=1, d_model=WIDTH, n_heads=1, d_vocab=TOKENS, n_ctx=96, seed=0)
    with torch.no_grad():
        module.embed.weight.copy_(stream)
        if logits is not None:
            module.unembed.weight.copy_(logits.T)
    return vs.Model(module.requires_grad_(False), bos=0, name="planted")


def dictionary(directions: Tensor, k: int | None = None) -> SparseDictionary:
    return SparseDictionary.of_directions(SITE, directions, k=k)


# ------------------------------------------------------------------------------------------------------- universality

FEATURES, SHARED = 64, 32


@cache
def two_networks():
    """The second has half of the first's features and as many of its own, written along other directions."""
    codes, own = sparse(FEATURES, 0.05, 1), sparse(FEATURES, 0.05, 2)
    order = torch.randperm(FEATURES, generator=torch.Generator().manual_seed(3))
    theirs = torch.cat([codes[:, :SHARED], own[:, SHARED:]], 1)[:, order]
    ours, others = orthonormal(FEATURES, 4), orthonormal(FEATURES, 5)
    effects = torch.randn(2, FEATURES, TOKENS, generator=torch.Generator().manual_seed(6))
    wanted = torch.cat([effects[0, :SHARED], effects[1, SHARED:]])[order]
    first = network(codes @ ours, ours.T @ effects[0])
    second = network(theirs @ others, others.T @ wanted)
    return (first, dictionary(ours)), (second, dictionary(others)), order.argsort()[:SHARED]


def test_partners_are_found_across_networks_and_only_where_there_are_any():
    (first, ours), (second, theirs), partners = two_networks()
    found = feature_universality(first, ours, other=theirs, other_model=second)
    assert found.latents.tolist() == list(range(FEATURES))
    shared = found.latents < SHARED
    assert found.partners[shared].equal(partners)
    assert found.correlations[shared].min() > 0.999
    assert found.correlations[~shared].max() < found.random.max(), "no more than in a random dictionary"
    assert found.shifted.max() < 0.2 and found.twins.max() < 0.2
    assert found.neurons is not None and found.neurons.median() < 0.35, "the second network's basis is turned"
    with_partner = found.headlines()[1]
    assert with_partner.value == SHARED / FEATURES


def test_partners_do_alike_and_the_others_do_not():
    (first, ours), (second, theirs), _ = two_networks()
    found = feature_universality(first, ours, other=theirs, other_model=second)
    shared = found.latents[found.judged] < SHARED
    for does in (found.logits, found.attributions):
        assert does is not None
        assert does[0, shared].min() > 0.99
        assert does[0, ~shared].abs().median() < 0.2 and does[1].abs().median() < 0.2


@pytest.mark.parametrize("shared", [0, 24, 48])
def test_two_dictionaries_of_one_network_share_what_they_share(shared):
    """In a random-init twin a direction that two dictionaries have is one and the same too: a twin is no control."""
    directions = orthonormal(96, 4)
    model = network(sparse(96, 0.05, 1) @ directions)
    other = directions[48 - shared : 96 - shared]
    found = feature_universality(model, dictionary(directions[:48]), other=dictionary(other.flip(0)))
    median, with_partner = found.headlines()[:2]
    assert with_partner.value == pytest.approx(shared / 48, abs=0.03)
    assert median.evidence == (shared == 48)


# ----------------------------------------------------------------------------------------------------------- splitting

CHILDREN = [5, 4, 3, 3, 2, 2, 1, 1, 1, 1, 1, 1]


@cache
def split():
    """A coarse latent for each parent; a fine one for each child, in another order; each token has two parents."""
    parents, children = len(CHILDREN), sum(CHILDREN)
    parent_of = torch.repeat_interleave(torch.tensor(CHILDREN))
    generator = torch.Generator().manual_seed(1)
    coarse, own = orthonormal(parents + children, 2).split([parents, children])
    written = coarse[parent_of] + own
    chosen = torch.stack([torch.randperm(parents, generator=generator)[:2] for _ in range(TOKENS)])
    stream = torch.zeros(TOKENS, WIDTH)
    for place in range(2):
        which = torch.stack(
            [
                torch.randint(CHILDREN[parent], (), generator=generator) + sum(CHILDREN[:parent])
                for parent in chosen[:, place].tolist()
            ]
        )
        stream += (0.5 + torch.rand(TOKENS, 1, generator=generator)) * written[which]
    order = torch.randperm(children, generator=generator)
    return network(stream), dictionary(coarse, k=2), dictionary(own[order], k=2), parent_of[order]


def test_children_are_named_with_their_number():
    model, coarse, fine, parents = split()
    found = feature_splitting(model, fine, others=[coarse])
    assert found.sizes == [len(CHILDREN), sum(CHILDREN)] and found.used == found.sizes
    assert found.children[0].tolist() == CHILDREN
    pairs = found.edges[0]["pairs"]
    assert pairs[:, 1].tolist() == list(range(sum(CHILDREN)))
    assert pairs[:, 0].equal(parents)
    assert found.shifted == [0]
    assert found.headlines()[0].evidence


def test_an_unrelated_dictionary_has_no_parents_though_its_latents_fire_with_many():
    """At a cosine of 0.4 each has one by chance: the coarse latents fire on a sixth of the tokens."""
    model, coarse, _, _ = split()
    found = feature_splitting(model, coarse, others=[dictionary(orthonormal(sum(CHILDREN), 77), k=2)])
    assert found.parented[0] <= 2
    assert not found.headlines()[0].evidence
    assert found.floors[0] > 0.9


# ---------------------------------------------------------------------------------------------------------------- maps

CLUSTERS, MEMBERS = 12, 10


def clustered(spread: float) -> tuple[Tensor, Tensor]:
    """Directions about a few random ones, in random order, and which is about which."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(CLUSTERS).repeat(MEMBERS)[torch.randperm(CLUSTERS * MEMBERS, generator=generator)]
    noise = torch.randn(len(truth), WIDTH, generator=generator)
    return orthonormal(CLUSTERS, 1)[truth] + spread * noise / WIDTH**0.5, truth


def test_planted_clusters_are_found_and_none_in_random_directions():
    from sklearn.metrics import adjusted_rand_score

    directions, truth = clustered(0.7)
    model = network(torch.zeros(TOKENS, WIDTH))
    found = feature_umap(model, dictionary(directions))
    assert adjusted_rand_score(truth, found.clusters) > 0.95
    assert abs(adjusted_rand_score(truth, found.random_clusters)) < 0.1
    ordered = truth[found.order.argsort()]
    assert (ordered[1:] != ordered[:-1]).sum() == CLUSTERS - 1, "a list in this order keeps clusters together"
    assert found.headlines()[0].evidence
    assert found.silhouettes[0] > found.silhouettes[1] + 0.2

    again, other = (feature_umap(model, dictionary(directions), seed=seed) for seed in (0, 1))
    for part in ("places", "order", "clusters", "random_clusters"):
        assert getattr(found, part).equal(getattr(again, part))
    assert not found.places.equal(other.places)
    assert adjusted_rand_score(truth, other.clusters) > 0.95


def test_random_directions_have_as_many_clusters_and_are_no_evidence():
    drawn = torch.randn(CLUSTERS * MEMBERS, WIDTH, generator=torch.Generator().manual_seed(0))
    found = feature_umap(network(torch.zeros(TOKENS, WIDTH)), dictionary(drawn))
    assert not found.headlines()[0].evidence
    assert found.silhouettes[0] < found.silhouettes[1] + 0.1
