"""The Kubernetes manifests: KubeRay takes them, and what they name exists.

KubeRay's own schemas (unknown fields refused) lie outside the project; the checks that do without them run everywhere.
"""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from gimp_ray.config_files import load_config

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kuberay"
SCHEMAS = ROOT.parent / "shared" / "data" / "kuberay"
MANIFESTS = ("raycluster-gpu.yaml", "rayjob-pretrain.yaml", "rayjob-pretrain-s3.yaml")
JOBS = MANIFESTS[1:]
JOBS_IN_IMAGE = "/home/ray/jobs"
every_manifest = pytest.mark.parametrize("name", MANIFESTS)
every_job = pytest.mark.parametrize("name", JOBS)
# processes in there see only one another, and are gone with the first
ALONE = ["unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
# a job that saves itself at SIGTERM, and a training worker that ends a while after it
POD = """
set -e
"$PYTHON" -c '
import pathlib, signal, sys, time
def end(*_):
    time.sleep(1)
    pathlib.Path("saved").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, end)
pathlib.Path("running").touch()
time.sleep(60)
' "$SCRIPT" --config run.yaml &
job=$!
work="until [[ -e saved ]]; do sleep 0.1; done; sleep 1; touch left"
WORK=$work bash -c 'exec -a "ray::RayTrainWorker.execute" bash -c "$WORK"' &
bash -c 'exec -a "ray::IDLE" sleep 60' &
other=$!
until [[ -e running ]]; do sleep 0.1; done
bash -c "$HOOK"
[[ -e saved && -e left ]]
kill -0 $other
wait $job
"""
GIGA = {"Mi": 2**20, "Gi": 2**30}


def _read(name: str) -> dict[str, Any]:
    tree: dict[str, Any] = yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))
    return tree


def _cluster(tree: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = tree["spec"]
    return spec["rayClusterSpec"] if tree["kind"] == "RayJob" else spec


def _pods(tree: dict[str, Any]) -> list[dict[str, Any]]:
    """Pod specs: the head's first."""
    cluster = _cluster(tree)
    return [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


def _containers(tree: dict[str, Any]) -> list[dict[str, Any]]:
    return [container for pod in _pods(tree) for container in pod["containers"]]


def _bytes(quantity: str) -> int:
    return int(quantity[:-2]) * GIGA[quantity[-2:]]


def _options(entrypoint: str) -> dict[str, str]:
    words = entrypoint.split()[2:]
    assert len(words) % 2 == 0
    assert all(word.startswith("--") for word in words[::2])
    return {name.removeprefix("--"): value for name, value in zip(words[::2], words[1::2], strict=True)}


def _refusals(tree: dict[str, Any]) -> list[str]:
    packed = SCHEMAS / f"{tree['kind'].lower()}.schema.json.gz"
    schema = json.loads(gzip.decompress(packed.read_bytes()))
    return [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(tree)]


needs_schemas = pytest.mark.skipif(
    not SCHEMAS.is_dir(), reason="KubeRay's schemas (../shared/data/kuberay) are not on this machine"
)


@pytest.mark.real_data
@needs_schemas
@every_manifest
def test_kuberay_takes_the_manifest(name: str) -> None:
    assert _refusals(_read(name)) == []


@pytest.mark.real_data
@needs_schemas
@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("submissionmode",), "K8sJobMode"),
        (("backoffLimit",), "two"),
        (("rayClusterSpec", "workerGroupSpecs", 0, "maxReplica"), 2),
        (("rayClusterSpec", "authOptions", "mode"), "on"),
        (("rayClusterSpec", "headGroupSpec", "template", "spec", "containers", 0, "volumeMount"), []),
    ],
)
def test_the_schema_would_tell_a_mistake(path: tuple[Any, ...], value: Any) -> None:
    tree = _read("rayjob-pretrain-s3.yaml")
    at = tree["spec"]
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    assert len(_refusals(tree)) == 1


@every_manifest
def test_versions_and_the_one_place_of_the_image(name: str) -> None:
    text, tree = (FOLDER / name).read_text(encoding="utf-8"), _read(name)
    pinned = dict(re.findall(r"^(\S+)==(\S+)$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE))
    assert (tree["apiVersion"], _cluster(tree)["rayVersion"]) == ("ray.io/v1", pinned["ray"])
    (image,) = {container["image"] for container in _containers(tree)}
    assert len(re.findall(r"^\s*image:.*gimp-ray.*CHANGE", text, flags=re.MULTILINE)) == 1
    assert text.count(image) == 1
    assert image.endswith(":" + re.findall(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.M)[0])


@every_manifest
def test_the_head_does_no_work_and_workers_have_a_gpu(name: str) -> None:
    tree = _read(name)
    head, *groups = _pods(tree)
    assert _cluster(tree)["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert "nvidia.com/gpu" not in head["containers"][0]["resources"]["limits"]
    for pod in groups:
        limits = pod["containers"][0]["resources"]["limits"]
        assert int(limits["nvidia.com/gpu"]) >= 1
        assert limits == pod["containers"][0]["resources"]["requests"]
        assert any(taint["key"] == "nvidia.com/gpu" for taint in pod["tolerations"])


@every_manifest
def test_every_pod_has_shared_memory_for_the_object_store(name: str) -> None:
    """Ray takes 30 % of a pod's memory, and falls back to the disk where /dev/shm is smaller."""
    for pod in _pods(_read(name)):
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        (container,) = pod["containers"]
        mounted = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
        store = mounted["/dev/shm"]["emptyDir"]
        assert store["medium"] == "Memory"
        memory = _bytes(container["resources"]["limits"]["memory"])
        assert 0.3 * memory <= _bytes(store["sizeLimit"]) < 0.5 * memory


@every_manifest
def test_no_pod_runs_as_root_and_the_cluster_asks_for_a_token(name: str) -> None:
    tree = _read(name)
    assert all(pod["securityContext"]["runAsNonRoot"] for pod in _pods(tree))
    assert _cluster(tree)["authOptions"] == {"mode": "token"}


@every_manifest
def test_secrets_are_made_by_a_command_of_the_header(name: str) -> None:
    text, tree = (FOLDER / name).read_text(encoding="utf-8"), _read(name)
    header = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    wanted = [
        entry["valueFrom"]["secretKeyRef"]
        for container in _containers(tree)
        for entry in container["env"]
        if "valueFrom" in entry
    ]
    for key in wanted:
        assert f"--from-literal={key['key']}=" in header
        assert key.get("optional") or re.search(
            rf"kubectl create secret generic {key['name']} .*--from-literal={key['key']}=", header
        )
    in_s3 = "s3://" in yaml.safe_dump(tree) or name.startswith("raycluster")
    assert bool(wanted) == in_s3
    # nobody's key is in a manifest
    literal = [entry["name"] for c in _containers(tree) for entry in c["env"] if "value" in entry]
    assert not any("KEY" in one or "SECRET" in one or "TOKEN" in one for one in literal)


def test_the_volume_claim_is_there_and_many_may_write() -> None:
    tree = _read("rayjob-pretrain.yaml")
    claims = {
        volume["persistentVolumeClaim"]["claimName"]
        for pod in _pods(tree)
        for volume in pod["volumes"]
        if "persistentVolumeClaim" in volume
    }
    claim = _read("storage-claim.yaml")
    assert claims == {claim["metadata"]["name"]}
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]


@every_job
def test_the_entry_point_exists_and_its_keys_are_real(name: str) -> None:
    tree = _read(name)
    program, script, *_ = tree["spec"]["entrypoint"].split()
    assert program == "python"
    folder, _, file = script.rpartition("/")
    assert folder == JOBS_IN_IMAGE
    assert (ROOT / "jobs" / file).is_file()
    options = _options(tree["spec"]["entrypoint"])
    places = {option: options.pop(option) for option in ("config", "store", "run")}
    # an unknown key or an impossible value is refused here
    config = load_config(None, options)
    assert config.train.use_gpu is True
    mounts = [mount["mountPath"] for mount in _containers(tree)[-1]["volumeMounts"]]
    for place in places.values():
        assert place.startswith("s3://") or any(place.startswith(f"{mount}/") for mount in mounts)


@every_job
def test_workers_are_as_many_as_gpus_and_leave_cpus_for_ray_data(name: str) -> None:
    tree = _read(name)
    config = load_config(None, {k: v for k, v in _options(tree["spec"]["entrypoint"]).items() if "." in k})
    (group,) = _cluster(tree)["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    gpus, cpus = int(limits["nvidia.com/gpu"]), int(limits["cpu"])
    assert group["replicas"] == group["minReplicas"] == group["maxReplicas"]
    assert config.train.workers == group["replicas"] * gpus
    assert cpus - gpus * config.train.cpus_per_worker >= 1
    if name.endswith("s3.yaml"):
        # one request a window: as many at once as a mini-batch has (docs/scaling.md)
        assert config.feed.threads == config.batch.classes * config.batch.cases_per_class


@every_job
def test_a_job_cleans_up_and_tries_again(name: str) -> None:
    spec = _read(name)["spec"]
    assert spec["submissionMode"] == "K8sJobMode"
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["ttlSecondsAfterFinished"] > 0
    assert spec["backoffLimit"] >= 1


def test_the_standing_cluster_scales_from_nothing() -> None:
    cluster = _cluster(_read("raycluster-gpu.yaml"))
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["autoscalerOptions"]["version"] == "v2"
    (group,) = cluster["workerGroupSpecs"]
    assert (group["minReplicas"], group["replicas"]) == (0, 0)
    assert group["maxReplicas"] > 0
    pods = (cluster["headGroupSpec"], group)
    assert all(pod["template"]["spec"]["restartPolicy"] == "Never" for pod in pods)
    waits = {e["name"]: e.get("value") for e in group["template"]["spec"]["containers"][0]["env"]}
    assert int(waits["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"]) >= 600


@every_manifest
def test_every_pod_gets_the_time_to_save_the_run(name: str) -> None:
    """The grace is for the pod's hook, for `ray job stop` within it, and for what Ray does after that."""
    tree = _read(name)
    for pod, container in zip(_pods(tree), _containers(tree), strict=True):
        given = {entry["name"]: entry.get("value") for entry in container["env"]}
        # more than SLURM's and the clouds' usual two minutes; Ray reads it as a whole number
        assert 120 <= int(given["RAY_JOB_STOP_WAIT_TIME_S"]) < pod["terminationGracePeriodSeconds"]
        assert container["lifecycle"]["preStop"]["exec"]["command"][:2] == ["/bin/bash", "-c"]


@pytest.mark.skipif(
    subprocess.run([*ALONE, "true"], capture_output=True, check=False).returncode != 0,
    reason="this machine does not let users make namespaces",
)
@pytest.mark.parametrize("script", [f"{JOBS_IN_IMAGE}/pretrain.py", "jobs/finetune.py"])
@pytest.mark.slow
def test_the_pods_hook_tells_the_job_and_waits_for_it_and_its_workers(script: str, tmp_path: Path) -> None:
    containers = [container for name in MANIFESTS for container in _containers(_read(name))]
    (hook,) = {container["lifecycle"]["preStop"]["exec"]["command"][2] for container in containers}
    variables = {"PATH": "/usr/bin:/bin", "PYTHON": sys.executable, "SCRIPT": script, "HOOK": hook}
    pod = subprocess.run(
        [*ALONE, "bash", "-c", POD],
        cwd=tmp_path,
        env=variables,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert pod.returncode == 143, pod.stderr
