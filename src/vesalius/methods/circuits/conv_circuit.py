"""The circuit that builds a feature of a conv network, as "car from windows, body and wheels".

Olah et al. 2020 (Zoom In, distill.pub/2020/circuits/zoom-in) draw a car detector with the three units it is made of:
windows excite it at the top and inhibit it below, wheels the other way round. Here nodes are features with their
pictures, and an edge is the signed map with which a later feature reads an earlier one, by expanded weights, so that
layers between may be left out. For each edge the share of the target's weight that it holds and, in its upper and its
lower half, how much of that excites and inhibits.

Two controls, both on untrained twins: what share of the weight as many inputs of a unit hold (chosen alike
where the inputs were searched, of random ones where they were named), and how far upper and lower half differ on the
any of as many edges into such units, or on these edges with the positions of their maps shuffled.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from vesalius import figures
from vesalius.dictionaries import Feature, neurons
from vesalius.errors import VesaliusError
from vesalius.figures import Figure
from vesalius.method import method, progress
from vesalius.model import Model
from vesalius.result import Headline, Result
from vesalius.visualization import visualise
from vesalius.weights.expanded import expanded_weights
from vesalius.weights.maps import mass, shuffled, upper_minus_lower
from vesalius.weights.neighbours import PIXELS, layer_before, layer_number, unit_of
from vesalius.weights.untrained import untrained_weights


@dataclass(frozen=True)
class ConvCircuit(Result):
    """Edges are `{"source", "target", "map", "share", "upper", "lower", "difference"}`."""

    nodes: list
    """`{"name", "site"}`, earlier layers first; the last is the feature."""
    edges: list
    """`share` of the target's weight, signed `upper` and `lower` sums over it, and their `difference` over the map's
    mass: 1 excites above and inhibits below, -1 the other way round."""
    pictures: UInt8[Tensor, "node channel height width"] | None
    share: float
    """Of the weight into the feature, what its drawn inputs hold."""
    null_share: Float[Tensor, " unit"]
    null_difference: float
    """What the size of the difference exceeds, on any of as many edges of untrained twins, once in a hundred times."""
    shuffled_difference: float
    """The same of these edges with the positions of their maps shuffled."""
    choices: dict

    def headlines(self) -> list[Headline]:
        into = [edge for edge in self.edges if edge["target"] == self.nodes[-1]["name"]]
        most = max(self.edges, key=lambda edge: abs(edge["difference"]))
        chance = max(self.null_difference, self.shuffled_difference)
        above = [edge for edge in self.edges if abs(edge["difference"]) > chance]
        return [
            Headline(
                f"share of the weight into {self.nodes[-1]['name']} from {len(into)} features",
                self.share,
                self.null_share.max().item(),
                evidence=self.share > self.null_share.max().item(),
                note=f"control: {self.choices['control']}",
            ),
            Headline(
                f"difference of the upper and the lower half, {most['source']} → {most['target']}",
                abs(most["difference"]),
                chance,
                evidence=bool(above),
                note=f"{_words(most)}; {len(above)} of {len(self.edges)} edges exceed chance",
            ),
        ]

    def figure(self) -> Figure:
        pictures = [None] * len(self.nodes) if self.pictures is None else list(self.pictures)
        nodes = [
            {"id": node["name"], "label": unit_of(node["name"]), "column": node["site"], "picture": picture}
            for node, picture in zip(self.nodes, pictures)
        ]
        edges = [
            {
                "source": edge["source"], "target": edge["target"], "map": edge["map"],
                "weight": edge["map"].sum().item(), "label": f"{edge['share']:.1%}",
            }
            for edge in self.edges
        ]  # fmt: skip
        circuit = figures.circuit(
            nodes,
            edges,
            title="The circuit",
            caption="Each edge: the weight at every position of the later feature's field, row 0 above; "
            "the share of all weight into it.",
        )
        table = figures.table(
            ["edge", "share of weight", "upper half", "lower half", "upper − lower", "reading"],
            [
                [f"{edge['source']} → {edge['target']}", f"{edge['share']:.2%}",
                 {"text": f"{edge['upper']:+.2%}", "value": 100 * edge["upper"]},
                 {"text": f"{edge['lower']:+.2%}", "value": 100 * edge["lower"]}, edge["difference"], _words(edge)]
                for edge in self.edges
            ],
            title="Edges",
            caption="Sums of signed weights in % of all weight into the target; the middle row is in neither half.",
        )  # fmt: skip
        return figures.group([circuit, table], title=f"{self.nodes[-1]['name']} from earlier features")


@method(needs=("images",))
def conv_circuit(
    model: Model,
    feature: Feature,
    *,
    others: list[str] | None = None,
    depth: int = 1,
    width: int = 3,
    steps: int = 64,
    seed: int = 0,
) -> ConvCircuit:
    """The features that a feature is assembled from, and the signed maps between them.

    `others` names the earlier features, of any layers; None searches: from the feature down, `depth` layers, of each
    the `width` channels that most excite the nodes after them, and one that inhibits them most. Edges run between
    neighbouring columns. Pictures take `steps` steps (0: none). Raises VesaliusError for features that are not earlier.

    >>> from vesalius.testbed import curve_network
    >>> found = conv_circuit(curve_network(), "curves[3]", others=["small_curves[3]", "small_curves[15]"], steps=0)
    >>> [round(edge["map"].sum().item() / edge["map"].abs().sum().item(), 1) for edge in found.edges]
    [1.0, -1.0]
    """
    named = [model.feature(name) for name in others or []]
    columns = _named(model, feature, named) if named else _searched(model, feature, depth, width)
    edges = []
    for sources, targets in pairwise(columns):
        edges += _edges(model, sources, targets)
    into = [edge for edge in edges if edge["target"] == str(feature)]
    if not into:
        raise VesaliusError(f"nothing was found that {feature} reads; expected at least one input")

    generator = torch.Generator().manual_seed(seed)
    shares, differences = [], []
    below = columns[-2][0].site
    twins = untrained_weights(model, below, feature, seed=seed)
    for _, _, weights in progress(twins, "untrained twins"):
        if named:
            order = torch.rand(weights.shape[:2], generator=generator).to(weights.device)
            picked = order.topk(len(into), dim=1).indices
        else:
            picked = _heaviest(weights, width)
        masses = mass(weights)
        shares.append(masses.gather(1, picked).sum(1) / masses.sum(1).clamp(min=1e-30))
        differences.append(upper_minus_lower(weights).abs().flatten())
    orders = [
        upper_minus_lower(shuffled(edge["map"][None, None], generator)).abs().flatten()
        for edge in edges
        for _ in range(100)
    ]
    rare = 1 - 0.01 / len(edges)
    nodes = [node for column in columns for node in column]
    return ConvCircuit(
        nodes=[{"name": _name(node), "site": node.site} for node in nodes],
        edges=edges,
        pictures=_pictures(model, nodes, steps=steps, seed=seed),
        share=sum(edge["share"] for edge in into),
        null_share=torch.cat(shares),
        null_difference=_quantile(torch.cat(differences), rare),
        shuffled_difference=_quantile(torch.cat(orders), rare),
        choices={
            "nonlinearities": "rectifiers left out, max pools averaged",
            "inputs": "named" if named else "searched",
            "control": f"{'random' if named else 'as many'} inputs of {sum(map(len, shares))} units of "
            "untrained twins",
            "steps": steps,
        },
    )


def _quantile(values: Float[Tensor, " map"], share: float) -> float:
    at = min(len(values) - 1, int(share * len(values)))
    return values.sort().values[at].item()


def _named(model: Model, feature: Feature, others: list[Feature]) -> list[list[Feature]]:
    """Columns by layer, the feature last."""
    by_site: dict[str, list[Feature]] = {}
    for other in others:
        by_site.setdefault(other.site, []).append(other)
    order = sorted(by_site, key=lambda site: layer_number(model, site))
    if layer_number(model, order[-1]) >= layer_number(model, feature.site):
        raise VesaliusError(
            f"'{order[-1]}' is not earlier than '{feature.site}'; a circuit is of earlier features"
        )
    return [*(by_site[site] for site in order), [feature]]


def _searched(model: Model, feature: Feature, depth: int, width: int) -> list[list[Feature]]:
    """From the feature down, the channels of each layer before that weigh most in the column found last."""
    columns = [[feature]]
    while len(columns) <= depth and columns[0][0].site != PIXELS:
        site = columns[0][0].site
        before = layer_before(model, site)
        weights = _weights(model, before, columns[0])
        weights = weights / mass(weights).sum(1).clamp(min=1e-30)[:, None, None, None]
        together = torch.stack([weights.clamp(min=0).mean(0), weights.clamp(max=0).mean(0)], dim=-1).flatten(
            -2
        )
        columns.insert(0, [neurons(before)[unit] for unit in _heaviest(together[None], width)[0].tolist()])
    return columns


def _heaviest(weights: Float[Tensor, "target source row column"], width: int) -> Int[Tensor, "target chosen"]:
    """The sources that excite most, and of the others the one that inhibits most."""
    excite, inhibit = weights.clamp(min=0).sum((2, 3)), -weights.clamp(max=0).sum((2, 3))
    first = excite.topk(min(width, excite.shape[1] - 1), dim=1).indices
    return torch.cat([first, inhibit.scatter(1, first, -1.0).argmax(1, keepdim=True)], dim=1)


def _weights(model: Model, source: str, targets: list[Feature]) -> Float[Tensor, "target source row column"]:
    width = model.map_shape(targets[0].site)[0]
    directions = torch.stack([target.vector(width) for target in targets])
    return expanded_weights(model, source, targets[0].site, channels=directions)


def _edges(model: Model, sources: list[Feature], targets: list[Feature]) -> list[dict]:
    weights = _weights(model, sources[0].site, targets)
    written = torch.stack([source.written(weights.shape[1]) for source in sources]).to(weights)
    maps = torch.einsum("tsrc,ns->tnrc", weights, written)
    totals = mass(weights).sum(1).clamp(min=1e-30)
    half = maps.shape[-2] // 2
    return [
        {
            "source": _name(source),
            "target": _name(target),
            "map": maps[t, s],
            "share": (mass(maps[t, s]) / totals[t]).item(),
            "upper": (maps[t, s, :half].sum() / totals[t]).item(),
            "lower": (maps[t, s, maps.shape[-2] - half :].sum() / totals[t]).item(),
            "difference": upper_minus_lower(maps[t, s]).item(),
        }
        for t, target in enumerate(targets)
        for s, source in enumerate(sources)
    ]


def _pictures(model: Model, nodes: list[Feature], *, steps: int, seed: int) -> Tensor | None:
    """Visualisations of all nodes; colours of the input have none."""
    seen = [node for node in nodes if node.site != PIXELS]
    if not steps or len(seen) < len(nodes):
        return None
    return visualise(model, seen, steps=steps, seed=seed).images


def _name(feature: Feature) -> str:
    return f"pixels[{feature.index}]" if feature.site == PIXELS else str(feature)


def _words(edge: dict) -> str:
    """Where the edge excites and where it inhibits; what is under a tenth of its weight is left out."""
    parts = [
        f"{'excites' if edge[half] > 0 else 'inhibits'} {where}"
        for half, where in (("upper", "above"), ("lower", "below"))
        if abs(edge[half]) > 0.1 * edge["share"]
    ]
    together = len({part.split()[0] for part in parts}) == 1 and len(parts) == 2
    return parts[0].split()[0] if together else ", ".join(parts) or "balanced"
