"""The cases by name, with what each must reach."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import bench.operators  # noqa: F401 (before all that imports torchvision)
from bench import (
    cases,
    dashboards,
    directions,
    othello,
    probes,
    sae_dashboard,
    store,
    vision_examples,
    vision_expanded,
    vision_tuning,
    vision_visualization,
)
from bench.cases import Side


@dataclass(frozen=True)
class Case:
    """Ours and the peer's side of one question; `time` and `memory` are the largest ratios ours / peer allowed."""

    title: str
    sides: Mapping[str, Side]
    time: float | None = None
    memory: float | None = None
    agree: float | None = 1e-5
    """The largest relative difference allowed between what the sides return; None where only cost is compared."""
    higher: bool = False
    """Whether every number that ours returns must be at least the peer's."""
    repeats: int = 5
    home: str = ""
    """The environment of a peer that cannot live beside the others."""


TL = "TransformerLens 4.3"
CASES = {
    "harvest": Case(
        "harvest of 65k tokens to disk / the forward stopped at the same layer",
        {"ours": store.our_harvest, "peer": store.forward_alone},
        time=1 / 0.9,
        agree=0.0,
        repeats=2,
    ),
    "shuffled-read": Case(
        "shuffled batches of a store / the same store in order",
        {"ours": store.shuffled, "peer": store.sequential},
        time=2.0,
        agree=None,
    ),
    "othello-games": Case(
        "4,000 random games of Othello on 8×8 with labels / a plain Python engine",
        {"ours": othello.ours, "peer": othello.plain},
        time=0.05,
        agree=0.0,
        repeats=2,
    ),
    "record-residual": Case(
        "record resid_post at all layers / plain forward of the same module",
        {"ours": cases.record_residual, "peer": cases.plain_forward},
        time=1.05,
        agree=0.0,
        repeats=10,
    ),
    "record-classic-narrow": Case(
        f"record everything classic, 12 layers of width 96, 1×8 tokens / {TL} run_with_cache",
        {"ours": cases.record_classic(96, 1, 8), "peer": cases.run_with_cache(96, 1, 8)},
        time=0.6,
        repeats=30,
    ),
    "record-classic-memory": Case(
        f"record everything classic, width 768, 2×256 tokens / {TL} run_with_cache",
        {"ours": cases.record_classic(768, 2, 256), "peer": cases.run_with_cache(768, 2, 256)},
        memory=0.6,
        repeats=1,
    ),
    "patch-sweep": Case(
        f"layer × position patch sweep of the residual stream, 12×12 / {TL}",
        {"ours": cases.our_sweep, "peer": cases.peer_sweep},
        time=0.1,
        repeats=3,
    ),
    "composition": Case(
        f"composition scores, all pairs, one mode / {TL}",
        {"ours": cases.our_composition, "peer": cases.peer_composition},
        time=0.25,
        memory=0.25,
        repeats=3,
    ),
    "eigenvalues": Case(
        f"full-circuit OV eigenvalues, 144 heads / {TL}",
        {"ours": cases.our_eigenvalues, "peer": cases.peer_eigenvalues},
        time=1 / 30,
        repeats=2,
    ),
    "skip-trigram-top-k": Case(
        "full-vocabulary skip-trigram top-k, one head, V = 50,257 / the bare matrix product in blocks",
        {"ours": cases.our_top_k, "peer": cases.bare_gemm},
        time=1 / 0.7,
        agree=None,
        repeats=3,
    ),
    "joint-tuning": Case(
        "turned examples, all units of InceptionV1 mixed3b / plain loop, one picture at a time",
        {"ours": vision_tuning.turned_crops, "peer": vision_tuning.plain_loop},
        time=1 / 5,
        agree=1e-4,
        repeats=2,
    ),
    "expanded-weights": Case(
        "expanded weights of all 480 channels of InceptionV1 mixed3b on mixed3a / one backward pass for each",
        {"ours": vision_expanded.all_at_once, "peer": vision_expanded.one_by_one},
        time=1 / 20,
        repeats=3,
    ),
    "examples": Case(
        f"top-k and spectrum of every unit of mixed3b, {vision_examples.PICTURES} pictures / the forward to mixed3b",
        {"ours": vision_examples.top_and_spectrum, "peer": vision_examples.forward_alone},
        time=1.15,
        agree=None,
        repeats=1,
    ),
    "visualise": Case(
        "visualise 16 channels of mixed3b of InceptionV1, 128 px, 32 steps / torch-lucent 0.1.8, 2 of the 16",
        {"ours": vision_visualization.ours, "peer": vision_visualization.peer},
        time=16 / 2 / 15,
        agree=None,
        higher=True,
        repeats=1,
    ),
    "reading-vectors": Case(
        "reading vectors of 512 pairs, all layers of a random GPT-2 / steering-vectors 0.12",
        {"ours": directions.ours, "peer": directions.steering_vectors},
        time=1 / 1.5,
        agree=1e-3,
        repeats=1,
    ),
    "reading-vectors-pca": Case(
        "the same by PCA / repeng 0.4, whose directions lose the concept",
        {"ours": directions.our_pca, "peer": directions.repeng},
        time=1 / 1.5,
        agree=None,
        repeats=1,
    ),
    "steered-generation": Case(
        "24 tokens steered at all 12 layers of GPT-2 / the same, plain",
        {"ours": directions.steered_generation, "peer": directions.plain_generation},
        time=1.1,
        agree=None,
        repeats=5,
    ),
    "dashboards": Case(
        f"examples and correlations of 4,096 latents, {dashboards.CONTEXTS * dashboards.LENGTH // 1024}k tokens / "
        f"encoding anew for each 128 latents, {dashboards.MEASURED} of the 32 times",
        {"ours": dashboards.one_pass, "peer": dashboards.pass_per_batch},
        time=32 / dashboards.MEASURED / 10,
        agree=1e-3,
        repeats=1,
    ),
    "sae-dashboard": Case(
        f"dashboards of 4,096 latents of zoo/mlp-1l, {sae_dashboard.CONTEXTS * sae_dashboard.LENGTH // 1024}k tokens / "
        f"SAEDashboard 0.8, {sae_dashboard.MEASURED} of its 16 batches of latents",
        {"ours": sae_dashboard.ours, "peer": sae_dashboard.peer},
        time=16 / sae_dashboard.MEASURED / 10,
        agree=1e-4,
        repeats=1,
        home=".bench-dashboards",
    ),
    **{
        f"probes-{spectrum}": Case(
            f"probes of {probes.SQUARES} squares × 3 classes, 100,000 × 512 rows of {about} in one solve / "
            f"scikit-learn, {fitted} of the {probes.SQUARES}",
            {
                "ours": partial(probes.one_solve, spectrum),
                "peer": partial(probes.square_by_square, spectrum),
            },
            time=probes.SQUARES / fitted / 20,
            agree=2e-3 / 0.885,
            repeats=1,
        )
        for (spectrum, fitted), about in zip(
            probes.FITTED.items(), ("variances that fall", "equal variances"), strict=True
        )
    },
}
