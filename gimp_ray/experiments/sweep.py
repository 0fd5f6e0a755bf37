"""What a sweep is: its typed settings, its presets, and how both come from a file.

One YAML has both: `base` (config keys every trial shares) beside the settings. A file without any of a sweep's own keys
is a run's config, and is the base.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError

from gimp_ray.config import Config, Section
from gimp_ray.config_files import explain, load_config, merge, method_of, nested, read_yaml
from gimp_ray.errors import ConfigError
from gimp_ray.evaluation import METRICS
from gimp_ray.experiments.runs import with_changes
from gimp_ray.experiments.space import Dimension, Params, crossed, dimensions, drawn
from gimp_ray.io.mirror import local_file
from gimp_ray.methods import find

Space = dict[str, dict[str, Any]]
# the specification's four
PAPER: Space = {
    "mask.ratio": {"uniform": [0.25, 0.75]},
    "window.length": {"choice": [1500, 3000, 6000]},
    "triplet.margin": {"uniform": [0.2, 1.6]},
    "train.lr": {"loguniform": [1e-5, 1e-3]},
}
PRESETS: dict[str, Space] = {
    "paper": PAPER,
    "masking_ratio": {"mask.ratio": {"choice": [0.15, 0.25, 0.5, 0.75, 0.9]}},
    "window": {"window.length": {"choice": [750, 1500, 3000, 6000]}},
    "margin": {"triplet.margin": {"choice": [0.2, 0.4, 0.8, 1.2, 1.6]}},
    "lr": {"train.lr": {"choice": [1e-5, 3e-5, 1e-4, 3e-4, 1e-3]}},
}
# what may change in the middle of a stage without making its checkpoint another model's
MUTABLE = (
    "train.lr",
    "train.weight_decay",
    "train.clip_norm",
    "mask.ratio",
    "mask.weight",
    "triplet.margin",
    "triplet.weight",
)
# of a setting that may change when a sweep is continued
FREE: dict[str, Any] = {"free": True}


class SweepConfig(Section):
    """What a sweep tries, how it chooses, and what it measures."""

    preset: Literal["paper", "masking_ratio", "window", "margin", "lr"] | None = Field(
        None, description="a space by name; unset, and without a space: paper"
    )
    space: Space = Field({}, description="config key -> {kind: values}; laid over the preset's")
    search: Literal["random", "grid", "optuna"] = Field("random", description="optuna: TPE, needs the extra `sweep`")
    scheduler: Literal["none", "asha", "median", "pbt"] = Field("none", description="what ends trials early")
    trials: int = Field(8, ge=1, json_schema_extra=FREE, description="how many; a grid search has as many as its grid")
    concurrent: int | None = Field(
        None, ge=1, json_schema_extra=FREE, description="trials at a time; unset: as the cluster has room"
    )
    objective: Literal["probe", "finetune"] = Field(
        "probe", description="probe: a classifier on CLS_pat during pre-training; finetune: the fine-tuned model"
    )
    probe: Literal["logistic", "knn"] = Field("logistic", description="what is fitted on the training split's CLS_pat")
    metric: Literal["accuracy", "balanced_accuracy", "macro_f1", "auroc", "average_precision", "c_index"] = Field(
        "auroc",
        description="on validation, larger is better; of labels auroc or average_precision, of survival c_index",
    )
    rungs: list[int] = Field([], description="epochs after which trials are measured; unset: as the scheduler needs")
    grace: int = Field(1, ge=1, description="asha, median: epochs before a trial may be stopped")
    reduction: int = Field(3, ge=2, description="asha: of this many trials one goes on past a rung")
    interval: int | None = Field(
        None, ge=1, description="median, pbt: epochs between measurements; unset: a tenth of all"
    )
    seed: int = Field(0, ge=0, description="of the draws")
    resamples: int = Field(1000, ge=10, description="patient-level bootstrap resamples of the intervals")
    max_failures: int = Field(
        2, ge=0, json_schema_extra=FREE, description="how often a trial whose process failed is started again"
    )
    retry_failed: bool = Field(
        False, json_schema_extra=FREE, description="try trials again that an earlier command gave up"
    )
    gpus_per_trial: float | None = Field(
        None,
        ge=0,
        json_schema_extra=FREE,
        description="share of a GPU for a trial with train.workers: 0; unset: one where there is one",
    )


def read_sweep(
    file: str | Path | None, overrides: dict[str, Any] | None = None, settings: dict[str, Any] | None = None
) -> tuple[Config, SweepConfig]:
    """The base config and the settings of a sweep, from a file and the command line.

    Args:
        file: a sweep's YAML, or a run's config, here or in object storage.
        overrides: dotted config keys, laid over the base.
        settings: the sweep's own, laid over the file's.

    Raises:
        ConfigError: a key that is neither a sweep's nor a config's, or an impossible value.
    """
    tree = {} if file is None else read_yaml(local_file(file))
    own = set(SweepConfig.model_fields) | {"base"}
    if not (set(tree) & own) - set(find(method_of(tree)).config.model_fields):
        base, tree = tree, {}
    else:
        base = _base_of(tree.pop("base", None), file)
        for key in ("store", "run"):  # where, not what
            if key in tree:
                base[key] = tree.pop(key)
        unknown = sorted(set(tree) - own)
        if unknown:
            raise ConfigError(
                f"unknown key '{unknown[0]}' of a sweep",
                file=file,
                expected="base, store, run, " + ", ".join(SweepConfig.model_fields),
                found=unknown[0],
                fix=f"put config keys below base:, as base: {{{unknown[0]}: ...}}",
            )
    return load_config(None, overrides, base=base), build_sweep(tree | (settings or {}), file)


def build_sweep(tree: dict[str, Any], file: str | Path | None = None) -> SweepConfig:
    """Check plain data and make it a sweep's settings."""
    try:
        sweep = SweepConfig.model_validate(tree)
    except ValidationError as error:
        raise explain(error, file, SweepConfig, "setting of a sweep") from None
    dimensions(sweep.space)
    return sweep


def space_of(sweep: SweepConfig) -> list[Dimension]:
    """The dimensions of the preset (by default `paper`), with those of the file laid over them."""
    preset = PRESETS[sweep.preset] if sweep.preset else PAPER if not sweep.space else {}
    return dimensions(preset | sweep.space)


def planned(sweep: SweepConfig, space: list[Dimension]) -> list[Params]:
    """The parameters of all trials, where they are known beforehand."""
    return crossed(space) if sweep.search == "grid" else drawn(space, sweep.seed, sweep.trials)


def stage_of(sweep: SweepConfig) -> str:
    """The stage whose epochs are a trial's."""
    return "pretrain" if sweep.objective == "probe" else "finetune"


def rungs_of(sweep: SweepConfig, epochs: int) -> list[int]:
    """Epochs after which a trial is measured, the last epoch always among them."""
    if sweep.rungs:
        before = sorted(set(sweep.rungs))
    elif sweep.scheduler == "asha":
        # ASHA's own rungs: grace x reduction^k
        before = [sweep.grace * sweep.reduction**k for k in range(epochs.bit_length() + 1)]
    elif sweep.scheduler == "none":
        before = []
    else:
        step = interval_of(sweep, epochs)
        before = list(range(step, epochs, step))
    return [epoch for epoch in before if 0 < epoch < epochs] + [epochs]


def interval_of(sweep: SweepConfig, epochs: int) -> int:
    """Epochs between two measurements of median stopping and population based training."""
    return sweep.interval or max(1, epochs // 10)


def check_sweep(base: Config, sweep: SweepConfig) -> list[Dimension]:
    """Refuse what cannot work before anything is started; the dimensions.

    Raises:
        ConfigError: names the key.
    """
    space = space_of(sweep)
    stage = stage_of(sweep)
    for one in space:
        if one.key in ("run", "store") or one.key.startswith(("cluster.", "log.")):
            raise ConfigError(f"'{one.key}' is no key to search over", found=one.key, fix="remove it from the space")
        for value in one.ends:
            epochs = with_changes(base, {one.key: value}).stage_train(stage).epochs
            if sweep.scheduler != "none" and epochs != base.stage_train(stage).epochs:
                raise ConfigError(
                    f"a scheduler compares trials by epoch, and '{one.key}' changes how many there are",
                    expected="scheduler: none",
                    found=f"scheduler: {sweep.scheduler}",
                    fix=f"remove {one.key} from the space, or use scheduler: none",
                )
    if sweep.scheduler == "pbt":
        _check_population(sweep, [one.key for one in space])
    _check_target(base, sweep)
    if sweep.gpus_per_trial and base.train.most_workers:
        raise ConfigError(
            "gpus_per_trial is for trials that train in their own process",
            expected="train.workers: 0",
            found=f"train.workers: {base.train.workers}, each of which has a GPU of its own",
            fix="set train.workers: 0 in the base, or leave gpus_per_trial out",
        )
    if sweep.search == "grid":
        crossed(space)
    if sweep.search == "optuna" and importlib.util.find_spec("optuna") is None:
        raise ConfigError(
            "search: optuna needs the package optuna",
            expected="optuna installed",
            found="no such package",
            fix="pip install 'gimp-ray[sweep]', or use search: random",
        )
    return space


def check_same(file: str, before: dict[str, Any], sweep: SweepConfig) -> None:
    """Refuse to continue a sweep with other settings than those it was begun with.

    Args:
        file: where the earlier settings stand.
        before: the earlier settings.
        sweep: of this command.
    """
    free = [name for name, field in SweepConfig.model_fields.items() if field.json_schema_extra]
    old, new = resolved(build_sweep(before, file)).model_dump(), resolved(sweep).model_dump()
    changed = [key for key in new if key not in free and old[key] != new[key]]
    if changed:
        raise ConfigError(
            f"the sweep was begun with another '{changed[0]}'"
            + (f" (and {len(changed) - 1} more: {', '.join(changed[1:])})" if len(changed) > 1 else ""),
            file=file,
            expected=str(old[changed[0]]),
            found=str(new[changed[0]]),
            fix="give the sweep's own settings, or a new folder; " + ", ".join(free) + " may change",
        )


def to_file(base: Config, sweep: SweepConfig) -> str:
    """Settings and base as YAML that `gimp sweep --config FILE --run SWEEP` takes; the space is written out.

    It does not name the sweep's own folder, so that a copy of the sweep is continued where it is.
    """
    return yaml.safe_dump(resolved(sweep).model_dump() | {"base": base.model_dump() | {"run": None}}, sort_keys=False)


def resolved(sweep: SweepConfig) -> SweepConfig:
    """The settings with their preset written out."""
    space = {one.key: {one.kind: list(one.values)} for one in space_of(sweep)}
    return sweep.model_copy(update={"preset": None, "space": space})


def _base_of(base: Any, file: str | Path | None) -> dict[str, Any]:
    """The base's keys: written out (nested or dotted), or in a file beside the sweep's."""
    if base is None:
        return {}
    if isinstance(base, str):
        return read_yaml(local_file(base if "://" in base or file is None else str(Path(str(file)).parent / base)))
    if not isinstance(base, dict):
        raise ConfigError(
            "the base of a sweep cannot be read", file=file, expected="config keys, or a file's name", found=repr(base)
        )
    tree: dict[str, Any] = {}
    for key, value in base.items():
        merge(tree, nested(str(key), value))
    return tree


def _check_target(base: Config, sweep: SweepConfig) -> None:
    """The probe measures the store's own classes; the metric is one of the target's kind."""
    kind, metrics = base.target.kind, METRICS[base.target.kind]
    if sweep.objective == "probe" and (kind != "class" or base.target.columns):
        raise ConfigError(
            "the probe measures the store's classes, and the target is another",
            expected="objective: finetune",
            found=f"objective: probe, target.kind: {kind}, target.columns: {base.target.columns}",
            fix="add --objective finetune, or leave the target out",
        )
    if sweep.metric not in metrics:
        raise ConfigError(
            f"'{sweep.metric}' is no metric of target.kind: {kind}",
            expected=f"metric: {' or '.join(metrics)}",
            found=f"metric: {sweep.metric}",
            fix=f"add --metric {metrics[0]}",
        )


def _check_population(sweep: SweepConfig, keys: list[str]) -> None:
    fixed = [key for key in keys if key not in MUTABLE]
    if fixed:
        raise ConfigError(
            f"population based training changes values in the middle of training, and '{fixed[0]}' cannot change there",
            expected="of " + ", ".join(MUTABLE),
            found=", ".join(fixed),
            fix="search over those, or use scheduler: asha",
        )
    for name, found, wanted in (
        ("search", sweep.search, "random"),
        ("objective", sweep.objective, "probe"),
    ):
        if found != wanted:
            raise ConfigError(
                f"population based training needs {name}: {wanted}", expected=wanted, found=found, fix=f"change {name}"
            )
    if sweep.trials < 2:
        raise ConfigError("a population has two trials or more", expected="trials: 2 or more", found=str(sweep.trials))


def own_settings(given: dict[str, str]) -> tuple[dict[str, str], dict[str, Any]]:
    """What was typed, as the sweep's own settings and as config keys; `--seed` is the config's."""
    own = {key.replace("-", "_"): value for key, value in given.items()}
    names = set(SweepConfig.model_fields) - {"seed", "space"}
    mine = {key: value for key, value in own.items() if key in names}
    return mine, {key: value for key, value in given.items() if key.replace("-", "_") not in names}
