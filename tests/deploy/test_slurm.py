"""The SLURM script with stand-ins for srun, scontrol and ray: what it starts, and what becomes of it at the time limit.

`ray symmetric-run` ends with `ray stop`, which stops every Ray of the user that it sees. So it has a stand-in too, and
Ray itself judges its options; once it is run for real, where the machine lets it be alone.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from gimp_ray import pipeline
from gimp_ray.config import Config
from gimp_ray.config_files import to_yaml
from gimp_ray.engine.checkpoint import latest_checkpoint
from gimp_ray.runs.folder import RunFolder
from tests.conftest import changed
from tests.engine.test_resume import metrics, same_weights
from tests.faults.running import steps_logged

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "deploy" / "slurm" / "pretrain.sbatch"
NODES, GPUS, CPUS = 2, 4, 32

# processes in there see only one another, have a network of their own, and are gone with the first
ALONE = ["unshare", "--user", "--map-root-user", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]

# leaves srun's own options out, and does the rest here; a signal goes on to it, as srun does
SRUN = """#!/bin/bash
echo "srun $*" >> "$CALLS"
while [[ $1 == --* ]]; do shift; done
"$@" &
trap 'kill -TERM $!' TERM
wait $! ; status=$?
while kill -0 $! 2>/dev/null; do wait $! ; status=$?; done
exit $status
"""
SCONTROL = """#!/bin/bash
echo "scontrol $*" >> "$CALLS"
"""
# notes its arguments and surroundings, then does what `symmetric-run` does on the head: runs the job, dies of SIGTERM
RAY = """#!/bin/bash
printf '%s\\n' "$@" > "$RAY_ARGUMENTS"
{ env; stat --format 'MODE=%a' "$RAY_TMPDIR"; } > "$RAY_ENVIRONMENT"
while [[ $1 != -- ]]; do shift; done
shift
"$@" &
trap 'touch "$CALLS.ray-was-told"; kill -KILL $!; exit 99' TERM
wait $!
"""


class Allocation:
    """A made-up allocation in a folder: starts the script, and knows what it called."""

    def __init__(self, folder: Path, python: str) -> None:
        self.folder = folder
        self.calls = folder / "calls"
        self.calls.touch()
        stubs, environment = folder / "stubs", folder / "environment" / "bin"
        for path, text in {
            stubs / "srun": SRUN,
            stubs / "scontrol": SCONTROL,
            environment / "ray": RAY,
            environment / "python": f"#!/bin/bash\n{python}\n",
        }.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            path.chmod(0o755)
        # this process's number: no other job of this name is on this machine
        self.job_id = str(os.getpid())
        self.variables = {
            "PATH": f"{stubs}:{os.environ['PATH']}",
            "HOME": str(folder),
            "CALLS": str(self.calls),
            "RAY_ARGUMENTS": str(folder / "ray-arguments"),
            "RAY_ENVIRONMENT": str(folder / "ray-environment"),
            "GIMP_RAY_ENV": str(folder / "environment"),
            "SLURM_SUBMIT_DIR": str(ROOT),
            "SLURM_JOB_ID": self.job_id,
            "SLURM_JOB_NUM_NODES": str(NODES),
            "SLURM_GPUS_ON_NODE": str(GPUS),
            "SLURM_CPUS_PER_TASK": str(CPUS),
        }

    def start(self, *options: str, **changed: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", str(SCRIPT), *options],
            env=self.variables | changed,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def started(self, *options: str, **changed: str) -> subprocess.Popen[str]:
        """The script once its job runs."""
        process = self.start(*options, **changed)
        deadline = time.monotonic() + 20
        while not (self.folder / "running").exists():
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return process

    def called(self, program: str) -> list[str]:
        return [line for line in self.calls.read_text().splitlines() if line.startswith(program)]

    def ray_arguments(self) -> tuple[list[str], list[str]]:
        """What `ray` was given before and after `--`."""
        words = (self.folder / "ray-arguments").read_text().splitlines()
        at = words.index("--")
        return words[:at], words[at + 1 :]

    def ray_environment(self) -> dict[str, str]:
        text = (self.folder / "ray-environment").read_text()
        return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def _sleeping(folder: Path) -> Allocation:
    """An allocation whose job goes on until it is stopped; then it takes a moment to save."""
    saving = f'kill $!; sleep 1; touch "{folder}/saved"; exit 143'
    return Allocation(
        folder, f'trap \'{saving}\' TERM; echo $$ > "{folder}/pid"; touch "{folder}/running"; sleep 60 & wait $!'
    )


def _saved(folder: Path) -> bool:
    """Whether the job had the time to save, with Ray still up."""
    return (folder / "saved").exists() and not (folder / "calls.ray-was-told").exists()


def _gone(folder: Path) -> bool:
    """Whether the job's process is no more."""
    try:
        os.kill(int((folder / "pid").read_text()), 0)
    except ProcessLookupError:
        return True
    return False


def _header() -> dict[str, str]:
    found = re.findall(r"^#SBATCH --([\w-]+)=?(\S*)$", SCRIPT.read_text(), flags=re.MULTILINE)
    assert len(found) == SCRIPT.read_text().count("#SBATCH")
    return dict(found)


def test_the_header_asks_for_whole_nodes_and_a_warning() -> None:
    header = _header()
    # `ray symmetric-run` stops every Ray of the user on a node, so no two jobs may share one
    assert "exclusive" in header
    assert header["ntasks-per-node"] == "1"
    assert int(header["cpus-per-task"]) > int(header["gpus-per-node"])
    assert re.fullmatch(r"B:USR1@\d+", header["signal"])
    assert "requeue" in header
    assert header["open-mode"] == "append"


def test_bash_reads_it_and_ray_stop_is_never_called_by_it() -> None:
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
    code = "\n".join(line for line in SCRIPT.read_text().splitlines() if not line.startswith("#"))
    assert "ray stop" not in code
    assert "pkill" not in code


def test_the_job_runs_with_a_worker_for_every_gpu(tmp_path: Path) -> None:
    """The real entry point, here asked for its help alone."""
    allocation = Allocation(tmp_path, f'exec "{sys.executable}" "$@"')
    process = allocation.start("--help", PYTHONPATH=str(ROOT))
    printed = process.communicate(timeout=60)[0]
    assert process.returncode == 0, printed
    assert "gimp pretrain" in printed
    _, entrypoint = allocation.ray_arguments()
    assert entrypoint[entrypoint.index("python") + 1 :] == [
        str(ROOT / "jobs" / "pretrain.py"),
        *("--train.workers", str(NODES * GPUS), "--train.use_gpu", "true", "--help"),
    ]
    assert not Path(f"/tmp/gimp-{allocation.job_id}").exists()
    assert allocation.called("scontrol") == []


def test_ray_takes_the_options_on_head_and_workers(tmp_path: Path) -> None:
    from ray.scripts.scripts import start
    from ray.scripts.symmetric_run import curate_and_validate_ray_start_args, symmetric_run

    allocation = Allocation(tmp_path, "true")
    assert allocation.start().wait(timeout=30) == 0
    (verb, *given), _ = allocation.ray_arguments()
    assert verb == "symmetric-run"
    own = symmetric_run.make_context("symmetric-run", list(given), resilient_parsing=True).params
    surroundings = allocation.ray_environment()
    assert own["min_nodes"] == NODES
    assert own["address"] == surroundings["RAY_ADDRESS"]
    options = curate_and_validate_ray_start_args(given)
    for role in (["--head"], ["--address", own["address"], "--block"]):
        parsed = start.make_context("start", [*role, *options]).params
        assert (parsed["num_cpus"], parsed["num_gpus"]) == (CPUS, GPUS)
    ports = [parsed[name] for name in ("dashboard_port", "ray_client_server_port", "dashboard_agent_listen_port")]
    ports.append(own["address"].rpartition(":")[2])
    assert len({int(port) for port in ports}) == 4
    assert all(20000 <= int(port) < 32768 for port in ports)


def test_each_job_has_its_own_folder_token_and_ports(tmp_path: Path) -> None:
    surroundings = []
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        allocation = Allocation(tmp_path / str(number), "true")
        process = allocation.start(SLURM_JOB_ID=str(os.getpid() + number))
        assert process.wait(timeout=30) == 0, process.communicate()[0]
        surroundings.append(allocation.ray_environment())
    for name in ("RAY_TMPDIR", "RAY_AUTH_TOKEN", "RAY_ADDRESS"):
        assert len({one[name] for one in surroundings}) == 2
    assert all(one["RAY_AUTH_MODE"] == "token" and len(one["RAY_AUTH_TOKEN"]) == 64 for one in surroundings)
    assert all(one["MODE"] == "700" for one in surroundings)
    # Ray's sockets are in it, and a socket's path may have 107 bytes
    assert all(len(one["RAY_TMPDIR"]) < 30 for one in surroundings)


@pytest.mark.slow
def test_near_the_time_limit_the_job_is_stopped_and_put_back(tmp_path: Path) -> None:
    allocation = _sleeping(tmp_path)
    process = allocation.started()
    process.send_signal(signal.SIGUSR1)
    printed = process.communicate(timeout=20)[0]
    assert process.returncode == 0, printed
    assert _gone(tmp_path) and _saved(tmp_path)
    assert allocation.called("scontrol") == [f"scontrol requeue {allocation.job_id}"]


@pytest.mark.slow
def test_it_is_not_put_back_for_ever(tmp_path: Path) -> None:
    allocation = _sleeping(tmp_path)
    process = allocation.started(SLURM_RESTART_COUNT="3", GIMP_RAY_REQUEUES="3")
    process.send_signal(signal.SIGUSR1)
    assert "3 attempts" in process.communicate(timeout=20)[0]
    assert process.returncode == 128 + signal.SIGTERM
    assert allocation.called("scontrol") == []


@pytest.mark.slow
def test_a_cancelled_job_stays_cancelled(tmp_path: Path) -> None:
    allocation = _sleeping(tmp_path)
    process = allocation.started()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGTERM
    assert _gone(tmp_path) and _saved(tmp_path)
    assert allocation.called("scontrol") == []


def test_before_the_job_runs_the_whole_step_is_stopped(tmp_path: Path) -> None:
    """While Ray starts there is nothing to save."""
    allocation = _sleeping(tmp_path)
    ray = tmp_path / "environment" / "bin" / "ray"
    ray.write_text(f"#!/bin/bash\ntouch '{tmp_path}/running'\nexec sleep 60\n")
    process = allocation.started()
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=20)
    assert process.returncode == 0
    assert allocation.called("scontrol") == [f"scontrol requeue {allocation.job_id}"]


def test_a_failed_job_keeps_its_exit_code(tmp_path: Path) -> None:
    allocation = Allocation(tmp_path, "exit 2")
    assert allocation.start().wait(timeout=30) == 2
    assert allocation.called("scontrol") == []


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"GIMP_RAY_JOB": "train"}, "there is no"),
        ({"GIMP_RAY_ENV": "/nowhere"}, "there is no Ray in"),
        ({"SLURM_CPUS_PER_TASK": "4"}, "Ray Data needs at least one more"),
        ({"SLURM_GPUS_ON_NODE": ""}, "no GPU in this allocation"),
        ({"SLURM_SUBMIT_DIR": ""}, "run this file with sbatch"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_starts(tmp_path: Path, changed: dict[str, str], said: str) -> None:
    allocation = Allocation(tmp_path, "true")
    process = allocation.start(**changed)
    assert said in process.communicate(timeout=20)[0]
    assert process.returncode != 0
    assert allocation.called("srun") == []


@pytest.mark.ray
@pytest.mark.timeout(900)
@pytest.mark.skipif(
    subprocess.run([*ALONE, "true"], capture_output=True, check=False).returncode != 0,
    reason="this machine does not let users make namespaces",
)
def test_with_the_real_ray_the_run_is_saved_near_the_time_limit_and_goes_on(tiny: Config, tmp_path: Path) -> None:
    config = changed(tiny, genes__encoder="none", train__epochs=100, checkpoint__every_epochs=100)
    (tmp_path / "run.yaml").write_text(to_yaml(config))
    allocation = Allocation(tmp_path, "true")
    network = "ip link set lo up && ip address add 10.77.0.1/32 dev lo"
    one_node = {"SLURM_JOB_NUM_NODES": "1", "SLURM_GPUS_ON_NODE": "1", "SLURM_CPUS_PER_TASK": "3"}
    # the environment these tests run in, with its real Ray
    one_node["GIMP_RAY_ENV"] = str(Path(sys.executable).parents[1])
    surroundings = {"GIMP_RAY_HEAD_IP": "10.77.0.1", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    options = ["--config", str(tmp_path / "run.yaml"), "--train.use_gpu", "false"]
    process = subprocess.Popen(
        [*ALONE, "bash", "-c", f'{network} && exec bash "$@"', "-", str(SCRIPT), *options],
        env=allocation.variables | one_node | surroundings | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    run = RunFolder(config.run or "")
    try:
        until = time.monotonic() + 300
        while steps_logged(run, "pretrain") < 10:
            assert process.poll() is None and time.monotonic() < until, process.stdout and process.stdout.read()
            time.sleep(0.1)
        (script,) = psutil.Process(process.pid).children()
        script.send_signal(signal.SIGUSR1)
        printed = process.communicate(timeout=300)[0]
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0 and "preempted: the run is saved" in printed, printed
    assert allocation.called("scontrol") == [f"scontrol requeue {allocation.job_id}"]
    found = latest_checkpoint(run.checkpoints("pretrain"))
    assert found is not None and found[1]["step"] >= 10 and not run.stage_done("pretrain")
    pipeline.pretrain(config)
    whole = pipeline.pretrain(changed(config, run=str(tmp_path / "whole")))
    assert metrics(run, "pretrain") == metrics(whole, "pretrain")
    assert same_weights(run.model_file("pretrain"), whole.model_file("pretrain"))
