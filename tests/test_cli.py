"""The command `gimp` as a user types it: verbs, overrides, refusals, exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner, Result

from gimp_ray.cli.commands import main
from gimp_ray.config_files import load_config
from gimp_ray.pipeline import load_run_config
from gimp_ray.runs.folder import RunFolder
from tests.conftest import TINY

ROOT = Path(__file__).resolve().parents[1]
VERBS = [
    "ingest",
    "check",
    "info",
    "status",
    "synth",
    "pretrain-genes",
    "pretrain",
    "finetune",
    "evaluate",
    "embed",
    "run",
    "demo",
    "doctor",
    "sweep",
    "keys",
]


def gimp(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(TINY))
    return file


def test_every_verb_has_help_with_an_example() -> None:
    listed = gimp("--help").output
    for verb in VERBS:
        answer = gimp(verb, "--help")
        assert verb in listed and answer.exit_code == 0
        assert "Example:" in answer.output and f"gimp {verb}" in answer.output


def test_the_stages_one_by_one_then_evaluation_and_embedding(
    config_file: Path, store_path: Path, tmp_path: Path
) -> None:
    run = RunFolder(tmp_path / "run")
    steps = [
        (
            "pretrain",
            "--config",
            config_file,
            "--store",
            store_path,
            "--run",
            run.path,
            "--train.epochs",
            "2",
            "--window.length=32",
        ),
        ("finetune", "--run", run.path, "--train.epochs", "1"),
        ("evaluate", "--run", run.path, "--evaluate.resamples", "50"),
        ("embed", "--run", run.path),
    ]
    for step in steps:
        answer = gimp(*step)
        assert answer.exit_code == 0, answer.output
    saved = load_config(run.config_file)
    assert saved.window.length == 32 and saved.train.epochs == 2 and saved.finetune.train.epochs == 1
    assert run.stage_done("genes") and run.stage_done("pretrain") and run.stage_done("finetune")
    assert json.loads((run.evaluation / "metrics.json").read_text())["resamples"] == 50
    assert pq.read_table(run.path / "embeddings.parquet").num_rows == 20
    assert "prob_LUAD" in pq.read_schema(run.path / "embeddings.parquet").names


@pytest.mark.slow
def test_the_saved_config_reruns_the_run(config_file: Path, store_path: Path, tmp_path: Path) -> None:
    first, again = RunFolder(tmp_path / "first"), RunFolder(tmp_path / "again")
    assert (
        gimp(
            "pretrain", "--config", config_file, "--store", store_path, "--run", first.path, "--train.epochs", "1"
        ).exit_code
        == 0
    )
    assert gimp("pretrain", "--config", first.config_file, "--run", again.path).exit_code == 0
    assert first.model_file("pretrain").read_bytes() == again.model_file("pretrain").read_bytes()


def test_train_options_of_fine_tuning_are_those_of_the_method(
    config_file: Path, store_path: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    where = ["--config", config_file, "--store", store_path, "--run", run, "--method.name", "snn"]
    train = ["--train.epochs", "2", "--train.lr", "2e-4"]
    stopped = gimp("finetune", *where, *train, "--train.stop_after", "1")
    assert stopped.exit_code == 0, stopped.output
    went_on = gimp("finetune", "--run", run, *train, "--train.stop_after", "null")
    assert went_on.exit_code == 0, went_on.output
    saved = load_run_config(run, {})
    assert (saved.method.train.epochs, saved.method.train.lr) == (2, 2e-4)
    assert RunFolder(run).stage_done("finetune")


def test_a_gene_encoder_can_be_brought_along(config_file: Path, store_path: Path, tmp_path: Path) -> None:
    genes, run = RunFolder(tmp_path / "genes"), RunFolder(tmp_path / "run")
    assert (
        gimp(
            "pretrain-genes", "--config", config_file, "--store", store_path, "--run", genes.path, "--train.epochs", "1"
        ).exit_code
        == 0
    )
    answer = gimp(
        "pretrain",
        "--config",
        config_file,
        "--store",
        store_path,
        "--run",
        run.path,
        "--train.epochs",
        "1",
        "--genes.checkpoint",
        genes.model_file("genes"),
    )
    assert answer.exit_code == 0, answer.output
    assert not run.stage_done("genes") and run.stage_done("pretrain")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["pretrain", "--store", "S", "--run", "R", "--train.lrr", "1"], ["train.lrr", "lr"]),
        (["pretrain", "--store", "S", "--run", "R", "--mask.ratio", "2"], ["mask.ratio", "2"]),
        (["pretrain", "--store", "S", "--run", "R", "--train.lr"], ["train.lr", "no value"]),
        (["pretrain", "--run", "R"], ["no store was given"]),
        (["pretrain", "--store", "S"], ["no run folder was given"]),
        (["pretrain", "--store", "nowhere", "--run", "R"], ["not a cohort store", "nowhere"]),
        (["pretrain", "--store", "S", "--run", "R", "stray"], ["stray"]),
        (["finetune", "--store", "S", "--run", "R"], ["no pre-trained model"]),
        (["evaluate", "--store", "S", "--run", "R"], ["no fine-tuned model"]),
        (["ingest", "--out", "O"], ["--cases was not given"]),
        (["ingest", "--cases", "C", "--out", "O", "--worker", "1"], ["unknown option 'worker'"]),
        (["synth", "--out", "O", "--cases", "none"], ["cases"]),
        (["check", "nowhere"], ["nowhere"]),
    ],
)
def test_a_refusal_says_what_and_leaves_nothing(
    arguments: list[str], words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    answer = gimp(*arguments)
    assert answer.exit_code in (1, 2)
    assert all(word in answer.output for word in words), answer.output
    assert "Traceback" not in answer.output
    assert list(tmp_path.iterdir()) == []


def test_check_tells_a_sound_store_from_a_damaged_one(store_path: Path, tmp_path: Path) -> None:
    import shutil

    assert gimp("check", store_path, "--deep").exit_code == 0
    damaged = tmp_path / "damaged"
    shutil.copytree(store_path, damaged)
    (damaged / "genes.parquet").write_bytes(b"nothing")
    answer = gimp("check", damaged)
    assert answer.exit_code == 1 and "FAIL" in answer.output and "genes.parquet" in answer.output


def test_synth_and_ingest_make_a_store_and_a_report(tmp_path: Path) -> None:
    out = tmp_path / "cohort"
    made = gimp(
        "synth",
        "--out",
        out,
        "--cases",
        "6",
        "--genes",
        "20",
        "--dim",
        "8",
        "--min_patches",
        "20",
        "--median_patches",
        "30",
        "--max_patches",
        "50",
    )
    assert made.exit_code == 0, made.output
    answer = gimp(
        "ingest",
        "--patches",
        out / "patches",
        "--genes",
        out / "genes.tsv",
        "--cases",
        out / "cases.csv",
        "--out",
        tmp_path / "store",
        "--gene-unit",
        "FPKM",
        "--workers",
        "1",
        "--strict",
    )
    assert answer.exit_code == 0, answer.output
    assert "cases     6" in answer.output and "Left out: nothing" in answer.output
    assert json.loads((tmp_path / "store" / "manifest.json").read_text())["modalities"]["rna"]["unit"] == "FPKM"


@pytest.mark.parametrize("job", sorted(path.stem for path in (ROOT / "jobs").glob("*.py")))
def test_jobs_are_entry_points_of_their_verbs(job: str) -> None:
    answer = subprocess.run(
        [sys.executable, str(ROOT / "jobs" / f"{job}.py"), "--help"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": ""},
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    verb = {"tune": "sweep", "pretrain_genes": "pretrain-genes"}.get(job, job)
    assert f"gimp {verb}" in answer.stdout


def test_there_is_a_job_for_every_stage() -> None:
    assert {path.stem for path in (ROOT / "jobs").glob("*.py")} == {
        "ingest",
        "pretrain_genes",
        "pretrain",
        "finetune",
        "evaluate",
        "table",
        "tune",
    }


def test_the_cluster_file_is_valid_for_rays_launcher() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    tree = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    validate_config(prepare_config(tree))
    assert any("gimp_ray" in command for command in tree["setup_commands"])
    assert tree["available_node_types"][tree["head_node_type"]]["node_config"]["InstanceType"].startswith("m")


def test_the_same_command_without_stop_after_goes_on(config_file: Path, store_path: Path, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    command = ["pretrain", "--config", config_file, "--store", store_path, "--run", run.path, "--genes.encoder", "none"]
    assert gimp(*command, "--train.stop_after", "1").exit_code == 0
    assert not run.stage_done("pretrain")
    assert gimp("pretrain", "--run", run.path).exit_code == 0
    assert run.stage_done("pretrain")


def test_commands_that_need_no_method_do_not_wait_for_torch() -> None:
    code = "import sys, gimp_ray.cli.commands, gimp_ray.ingest.ingest; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
