"""On a cluster of which a machine dies, a harvest ends with the bytes that one machine writes."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

CLUSTER = """
import sys, time
import ray
from ray.cluster_utils import Cluster
import torch
import vesalius as vs
from vesalius.architectures.toy import ToyTransformer
from vesalius.store import harvest

services, PATIENCE = ray._private.services, 240
ask = services.get_node

def patient(*given):  # Ray gives a raylet 30 seconds to answer, whatever else the machine has to do
    until = time.monotonic() + PATIENCE
    while True:
        try:
            return ask(*given)
        except RuntimeError:
            if time.monotonic() > until:
                raise
            time.sleep(1)

services.get_node = patient
services.resolve_ip_for_localhost = lambda host: host  # loopback stays loopback
machine = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "node_ip_address": "127.0.0.1"}
cluster = Cluster(initialize_head=True, head_node_args={**machine, "include_dashboard": False})
second = cluster.add_node(**machine)
cluster.wait_for_nodes(timeout=PATIENCE)

module = ToyTransformer(n_layers=2, d_model=32, n_heads=2, d_vocab=40, n_ctx=32, d_mlp=64, seed=1)
model = vs.Model(module, bos=0, name="toy")
ids = torch.randint(1, 40, (1200, 32), generator=torch.Generator().manual_seed(0))
told = []

def watch(done, shards):
    told.append((done, shards))
    if done == 5:
        cluster.remove_node(second, allow_graceful=False)
        while sum(node["Alive"] for node in ray.nodes()) == 2:  # until the other knows
            time.sleep(0.2)

given = dict(sites=["resid_post@0", "neurons@1"], shard_rows=960, batch=8)
harvest(model, ids, to=sys.argv[1], **given)
store = harvest(model, ids, to=sys.argv[2], engine="ray", address=cluster.address, watch=watch, **given)
alive = sum(node["Alive"] for node in ray.nodes())
with open(sys.argv[3], "w") as file:  # Ray prints what dies
    print("machines", len(ray.nodes()), alive, "shards", *told[-1], "damaged", len(store.verify()), file=file)
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.slow
def test_a_machine_dies_and_the_bytes_are_the_same(tmp_path):
    pytest.importorskip("ray")
    folders = [str(tmp_path / "local"), str(tmp_path / "ray")]
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(
        [sys.executable, "-c", CLUSTER, *folders, str(tmp_path / "told")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "told").read_text() == "machines 2 1 shards 40 40 damaged 0\n"
    for name in sorted(os.listdir(folders[0])):
        local, ray = (hashlib.sha256(Path(folder, name).read_bytes()).hexdigest() for folder in folders)
        assert local == ray, name
