"""Locks of other machines: respected while their holder lives, taken over once it is gone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from gimp_ray.errors import InputError
from gimp_ray.io import locks, storage

HERE = "this-machine"


def busy(found: str) -> InputError:
    return InputError("another command is at work", found=found)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "BEAT_S", 0.1)
    monkeypatch.setattr(locks, "SILENT_S", 1.0)
    monkeypatch.setattr(locks.socket, "gethostname", lambda: HERE)


def left_by_another_machine(place: str, **more: object) -> None:
    holder = {"host": "a-node", "pid": 1, "started": 0.0, "since": "noon", "mark": "m", **more}
    assert storage.create(place, json.dumps(holder).encode())


def read(place: str) -> dict[str, object]:
    filesystem, path = storage.resolve(place)
    return dict(json.loads(storage.read_bytes(filesystem, path)))


def a_lock_that_stands_still_is_taken_over(place: str) -> None:
    left_by_another_machine(place, beat=7)
    with locks.held(place, busy) as killed:
        assert killed and read(place)["host"] == HERE
    filesystem, path = storage.resolve(place)
    assert filesystem.get_file_info(path).type.name == "NotFound"


def a_living_holder_is_respected(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with locks.held(place, busy):
        # seen from elsewhere
        monkeypatch.setattr(locks.socket, "gethostname", lambda: "elsewhere")
        with pytest.raises(InputError) as refusal, locks.held(place, busy):
            pass
        assert f"process {os.getpid()} on {HERE}" in str(refusal.value.found)
        assert read(place)["host"] == HERE and int(str(read(place)["beat"])) > 0


def test_a_lock_that_stands_still_is_taken_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a_lock_that_stands_still_is_taken_over(str(tmp_path / "lock"))
    assert "waiting 1 s to see whether process 1 on a-node" in capsys.readouterr().out


def test_a_living_holder_is_respected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_living_holder_is_respected(str(tmp_path / "lock"), monkeypatch)


def test_a_lock_without_a_count_is_respected_at_once(tmp_path: Path) -> None:
    place = str(tmp_path / "lock")
    left_by_another_machine(place)
    started = threading.Event()
    with pytest.raises(InputError, match="another command is at work"), locks.held(place, busy):
        started.set()
    assert not started.is_set() and read(place)["host"] == "a-node"


def test_of_two_that_wait_for_a_dead_one_only_one_goes_on(tmp_path: Path) -> None:
    place, held, refused = str(tmp_path / "lock"), [], []
    left_by_another_machine(place, beat=7)

    def ask() -> None:
        try:
            with locks.held(place, busy):
                held.append(1)
                time.sleep(2.5)  # longer than the other one looks
        except InputError:
            refused.append(1)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(held), len(refused)) == (1, 1)


def test_a_holder_whose_lock_was_taken_over_ends(tmp_path: Path) -> None:
    place = tmp_path / "lock"
    script = (
        "import sys, time; from gimp_ray.io import locks; locks.BEAT_S = 0.1\n"
        "with locks.held(sys.argv[1], RuntimeError):\n    print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(place)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    left = json.dumps({"host": "elsewhere", "pid": 2, "started": 0.0, "mark": "another's", "beat": 0})
    storage.write_bytes(*storage.resolve(str(place)), left.encode())
    _, said = process.communicate(timeout=30)
    assert process.returncode == 1 and "took over" in said
    assert json.loads(place.read_text())["mark"] == "another's"
