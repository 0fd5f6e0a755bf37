"""A run over two nodes is the run of two workers on one node, to the bit: two raylets on this host, and two hosts with
networks of their own, where the machine allows network namespaces.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from gimp_ray import pipeline
from gimp_ray.config import Config
from gimp_ray.config_files import load_config, to_yaml
from gimp_ray.runs.folder import RunFolder
from tests.conftest import TINY, changed
from tests.engine.test_resume import metrics, same_weights
from tests.engine.test_two_workers import run_on_two_ranks
from tests.jobs.head import BIN, PATIENCE_S, ROOT, head_started, node_started

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1800)]

SCRIPT = ROOT / "deploy" / "namespaces" / "two-hosts.sh"
NAMESPACES = ["--user", "--map-root-user", "--net", "--uts", "--mount", "--pid", "--fork", "--mount-proc"]
# of a node's three CPUs a worker takes two: one worker a node, and a CPU for Ray Data
CPUS, CPUS_PER_WORKER = 3, 2


@pytest.fixture(scope="module")
def config(store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Pre-training on two workers that do not fit one node, from a gene encoder that is there."""
    folder = tmp_path_factory.mktemp("nodes")
    base = load_config(None, {"store": str(store_path), "run": str(folder / "genes")}, base=TINY)
    genes = pipeline.pretrain_genes(base).model_file("genes")
    return changed(
        base,
        run=str(folder / "one"),
        genes__checkpoint=str(genes),
        train__workers=2,
        train__use_gpu=False,
        train__cpus_per_worker=CPUS_PER_WORKER,
    )


@pytest.fixture(scope="module")
def one_node(config: Config) -> RunFolder:
    """The same on one node, without Ray."""
    return run_on_two_ranks(config, ["pretrain"])


def _same(config: Config, one: RunFolder) -> bool:
    run = RunFolder(config.run or "")
    assert metrics(run, "pretrain") == metrics(one, "pretrain")
    assert run.record()["attempts"][-1]["status"] == "done" and (run.path / "summary.md").exists()
    return same_weights(run.model_file("pretrain"), one.model_file("pretrain"))


def test_two_nodes_on_this_host(config: Config, one_node: RunFolder, tmp_path: Path) -> None:
    config = changed(config, run=str(tmp_path / "run"))
    (tmp_path / "run.yaml").write_text(to_yaml(config))
    with head_started(CPUS) as head, node_started(head, CPUS) as second:
        head.submit("two", "pretrain.py", "--config", tmp_path / "run.yaml")
        head.succeeded("two")
        assert len(set(head.nodes_of("RayTrainWorker"))) == 2 and second in head.nodes_of("RayTrainWorker")
    assert _same(config, one_node)


@pytest.mark.skipif(
    subprocess.run(["unshare", *NAMESPACES, "true"], capture_output=True, check=False).returncode != 0,
    reason="this machine does not let users make network namespaces",
)
def test_two_hosts_that_a_network_joins(config: Config, one_node: RunFolder, tmp_path: Path) -> None:
    config = changed(config, run=str(tmp_path / "run"))
    (tmp_path / "run.yaml").write_text(to_yaml(config))
    ran = subprocess.run(
        ["bash", str(SCRIPT), "gimp", "pretrain", "--config", str(tmp_path / "run.yaml")],
        cwd=ROOT,
        env=os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=2 * PATIENCE_S,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout
    workers = re.findall(r"ip=(\S+), pid=\d+\) world_rank=(\d), local_rank=(\d), node_rank=(\d)", ran.stdout)
    assert {rank: (local, node) for _, rank, local, node in workers} == {"0": ("0", "0"), "1": ("0", "1")}
    assert {address for address, *_ in workers} == {"10.77.0.1", "10.77.0.2"}
    assert _same(config, one_node)
