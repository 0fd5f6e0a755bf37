"""`cluster.yaml`: Ray's launcher takes it, its autoscaler wants spot nodes first, and nodes get the package and S3."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from gimp_ray.config_files import load_config

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "cluster.yaml").read_text(encoding="utf-8")
ON_A_G5_4XLARGE = {"CPU": 16, "GPU": 1}


def _tree() -> dict[str, Any]:
    tree: dict[str, Any] = yaml.safe_load(TEXT)
    return tree


def _to_launch(demands: int, **state: Any) -> dict[str, int]:
    """What Ray's autoscaler would start for so many workers with a GPU."""
    from ray.autoscaler.v2.instance_manager.config import NodeTypeConfig
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.utils import ResourceRequestUtil

    types = {
        name: NodeTypeConfig(
            name=name,
            min_worker_nodes=node.get("min_workers", 0),
            max_worker_nodes=node.get("max_workers", 1),
            priority=node.get("priority", 0),
            # the launcher asks AWS for them; the head has no GPU
            resources={"CPU": 8} if name == "head" else ON_A_G5_4XLARGE,
            launch_config_hash=name,
        )
        for name, node in _tree()["available_node_types"].items()
    }
    wanted = [ResourceRequestUtil.make({"CPU": 1, "GPU": 1})] * demands
    request = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs=types,
        max_num_nodes=100,
        resource_requests=ResourceRequestUtil.group_by_count(wanted),
        **state,
    )
    return {launch.instance_type: launch.count for launch in ResourceDemandScheduler(None).schedule(request).to_launch}


def test_rays_schema_and_launcher_take_it() -> None:
    import ray.autoscaler
    from ray.autoscaler._private.util import prepare_config, validate_config

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(_tree(), schema)
    validate_config(prepare_config(_tree()))


@pytest.mark.parametrize(("key", "value"), [("max_worker", 3), ("max_workers", "eight"), ("setup_commands", "pip")])
def test_rays_schema_would_tell_a_mistake(key: str, value: Any) -> None:
    import ray.autoscaler

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(_tree() | {key: value}, schema)


def test_spot_workers_come_first_and_on_demand_ones_where_spot_does_not_come() -> None:
    spot, on_demand = (_tree()["available_node_types"][name] for name in ("gpu_spot", "gpu_on_demand"))
    market = spot["node_config"].pop("InstanceMarketOptions")
    assert market["MarketType"] == "spot"
    assert spot["node_config"] == on_demand["node_config"]
    assert _to_launch(4) == {"gpu_spot": 4}
    assert _to_launch(4, recoverable_resource_availabilities={"gpu_spot": 0.0}) == {"gpu_on_demand": 4}
    assert _to_launch(10) == {"gpu_spot": 8, "gpu_on_demand": 2}


def test_the_head_has_no_gpu_and_workers_start_from_none() -> None:
    tree = _tree()
    types = tree["available_node_types"]
    assert not re.match(r"[gp]\d", types[tree["head_node_type"]]["node_config"]["InstanceType"])
    workers = [node for name, node in types.items() if name != tree["head_node_type"]]
    assert all(node["min_workers"] == 0 for node in workers)
    assert all(re.match(r"[gp]\d", node["node_config"]["InstanceType"]) for node in workers)


def test_every_node_may_use_s3() -> None:
    """The launcher makes an instance profile for the head alone."""
    types = _tree()["available_node_types"].values()
    assert len({json.dumps(node["node_config"]["IamInstanceProfile"]) for node in types}) == 1


def test_a_node_may_take_minutes_to_come_and_no_stranger_may_submit() -> None:
    options = " ".join(_tree()["docker"]["run_options"])
    assert int(re.findall(r"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S=(\d+)", options)[0]) >= 600
    assert int(re.findall(r"RAY_JOB_STOP_WAIT_TIME_S=(\d+)", options)[0]) >= 120
    assert "RAY_AUTH_MODE=token" in options
    assert _tree()["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"
    assert any("--dashboard-host=127.0.0.1" in command for command in _tree()["head_start_ray_commands"])


def test_the_setup_installs_the_package_that_is_carried_there() -> None:
    tree = _tree()
    (mounted,) = [there for there, here in tree["file_mounts"].items() if here == "."]
    words = shlex.split(tree["setup_commands"][0])
    assert words[:2] == ["pip", "install"]
    assert words[words.index("--constraint") + 1] == f"{mounted}/constraints.txt"
    place, extra = re.fullmatch(r"(.+)\[(\w+)\]", words[-1]).groups()  # type: ignore[union-attr]
    project = (ROOT / "pyproject.toml").read_text()
    assert place == mounted
    assert re.search(rf"^{extra} = \[", project, flags=re.MULTILINE)
    # the project's folder alone, at home, would do for `import gimp_ray`
    assert tree["setup_commands"][1].startswith("gimp --version && ")
    # what the wheel is made of exists, and nothing that keeps files back names it
    needed = ["pyproject.toml", "constraints.txt", "README.md", "LICENSE", "gimp_ray", "storage_schemas", "jobs"]
    kept_back = {line.strip("/*\n ") for line in (ROOT / ".gitignore").read_text().splitlines()}
    kept_back |= {pattern.removeprefix("**/") for pattern in tree["rsync_exclude"]}
    assert all((ROOT / name).exists() and name not in kept_back for name in needed)


def test_the_image_has_the_pinned_ray() -> None:
    pinned = dict(re.findall(r"^(\S+)==(\S+)$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE))
    assert _tree()["docker"]["image"] == f"rayproject/ray:{pinned['ray']}-py311-gpu"
    assert f"ray[default]=={pinned['ray']}" in TEXT


def test_the_command_of_the_header_is_a_real_one() -> None:
    header = " ".join(line.lstrip("# ").rstrip("\\") for line in TEXT.splitlines() if line.startswith("#"))
    submitted = re.findall(r"python (jobs/\w+\.py) (.*?) ray down", header)
    assert len(submitted) == 1
    script, options = submitted[0]
    assert (ROOT / script).is_file()
    keys = dict(re.findall(r"--([\w.]*\.[\w.]+) (\S+)", options))
    assert load_config(None, keys).train.use_gpu is True
    exported = set(re.findall(r"(\w+)=s3://", header))
    assert set(re.findall(r"\$(\w+)", options)) == exported
