"""On a cluster of which a machine dies, a harvest ends with the bytes that one machine writes."""

import hashlib
import os
import time
from pathlib import Path

import pytest
import torch

import vesalius as vs
from vesalius.architectures.toy import ToyTransformer
from vesalius.store import harvest

START = 240
"""Seconds that a raylet may take to start on a machine that has much else to do."""


@pytest.fixture
def cluster(monkeypatch):
    """Two machines, that is two raylets on this one; the first only leads."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONPATH", str(Path(vs.__file__).parent.parent))
    monkeypatch.setattr(ray._private.services, "get_node", patient(ray._private.services.get_node))
    nodes = {"include_dashboard": False, "num_cpus": 1, "object_store_memory": 80 * 2**20}
    made = Cluster(initialize_head=True, head_node_args={**nodes, "node_ip_address": "127.0.0.1"})
    second = made.add_node(num_cpus=1, object_store_memory=80 * 2**20, node_ip_address="127.0.0.1")
    made.wait_for_nodes(timeout=START)
    yield made, second
    ray.shutdown()
    made.shutdown()


def patient(ask):
    """Ray gives a raylet 30 seconds to answer, whatever else the machine has to do."""

    def asked(*given):
        until = time.monotonic() + START
        while True:
            try:
                return ask(*given)
            except RuntimeError:
                if time.monotonic() > until:
                    raise
                time.sleep(1)

    return asked


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_machine_dies_and_the_bytes_are_the_same(cluster, tmp_path):
    made, second = cluster
    module = ToyTransformer(n_layers=2, d_model=32, n_heads=2, d_vocab=40, n_ctx=32, d_mlp=64, seed=1)
    model = vs.Model(module, bos=0, name="toy")
    ids = torch.randint(1, 40, (1200, 32), generator=torch.Generator().manual_seed(0))
    given = dict(shard_rows=960, batch=8)
    harvest(model, ids, ["resid_post@0", "neurons@1"], to=tmp_path / "local", **given)

    told = []

    def watch(done: int, shards: int) -> None:
        told.append(done)
        if done == 5:
            made.remove_node(second, allow_graceful=False)

    store = harvest(
        model, ids, ["resid_post@0", "neurons@1"], to=tmp_path / "ray", engine="ray", address=made.address,
        watch=watch, **given,
    )  # fmt: skip
    assert len(told) == store.plan.shards == 40 and store.verify() == []
    for name in sorted(os.listdir(tmp_path / "local")):
        digest = [
            hashlib.sha256((tmp_path / where / name).read_bytes()).digest() for where in ("local", "ray")
        ]
        assert digest[0] == digest[1], name
