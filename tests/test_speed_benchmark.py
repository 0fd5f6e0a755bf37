"""The speed benchmark runs, and what it compares says the same: how fast is no test's business."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as speed

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """Every part at a small scale, as JSON, and what was printed."""
    out = tmp_path_factory.mktemp("speed") / "r.json"
    command = [sys.executable, "-m", "benchmarks", "--quick", "--out", str(out)]
    ran = subprocess.run(command, capture_output=True, cwd=ROOT, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return json.loads(out.read_text(encoding="utf-8")), ran.stdout


def test_contestants_compute_the_same(done: tuple[dict[str, Any], str]) -> None:
    result, _ = done
    assert result["attention"]["forward"]["apart"] < 1e-5, "the attention, where both are the same function"
    assert result["genes"]["apart"] < 1e-5, "the gene encoder"
    for bags in result["finetune"].values():
        assert bags["same"] < 1e-4, "whole bags, where both are the same function"
        assert bags["apart"] < 0.2, "the bags timed, but for the package's padding and scaling"
    assert result["step"]["apart"] < 1e-2, "the loss, but for the package's padding and scaling"


def test_every_contestant_has_its_figures(done: tuple[dict[str, Any], str]) -> None:
    result, printed = done
    both = ["gimp_ray", "reference"]
    assert list(result["step"]["seconds"]) == [*both, "gimp_ray, direct path"]
    assert list(result["genes"]["seconds"]) == list(result["finetune"]["uneven"]["seconds"]) == both
    assert list(result["memory"]["mb"]) == list(result["phases"]) == both
    epoch = result["epoch"]
    assert list(epoch["seconds"]) == ["gimp_ray", "reference, loader 0", "reference, loader 2"]
    assert len(set(epoch["steps"].values())) == 1, "all see an epoch of as many steps"
    assert [row["operator"].startswith("aten::") for row in result["profile"]["as taken"]].count(True) > 3
    assert result["limits"]["gflop"] > 0 and result["limits"]["share"]["median"] > 0
    for part in ("attention", "step", "memory", "finetune", "genes", "epoch", "phases", "growth", "limits", "profile"):
        assert f"## speed-{part}\n" in printed
    targets = printed.partition("## speed-targets\n")[2].partition("\n\n`")[0].partition("\n## ")[0]
    assert targets.count("| met |") + targets.count("| missed |") == 11, "every target has a verdict"
    assert str(ROOT) not in printed + json.dumps(result)
    assert result["command"] == "python -m benchmarks --quick" and "--out" not in printed


def test_tables_are_made_anew_from_an_earlier_run(
    done: tuple[dict[str, Any], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result, printed = done
    (tmp_path / "r.json").write_text(json.dumps(result))
    speed.main(["--from", str(tmp_path / "r.json")])
    assert capsys.readouterr().out == printed


def test_an_epoch_without_its_step_or_without_reading(capsys: pytest.CaptureFixture[str]) -> None:
    for switch, said in (("--skip-train-step", "reading alone"), ("--in-memory", "one batch again and again")):
        speed.main(["epoch", "--quick", switch])
        printed = capsys.readouterr().out
        assert said in printed and "reference, loader 2" in printed


def test_an_unknown_part_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refusal:
        speed.main(["speed"])
    assert refusal.value.code == 2
    assert "no part 'speed'; parts are attention, step" in capsys.readouterr().err
