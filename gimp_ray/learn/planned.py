"""What the trained stages share: an open store, the training split's index, and the plan's rows.

Left out: models, objectives and reads, which each task brings itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from gimp_ray.config import Config, TrainConfig
from gimp_ray.config_files import build_config
from gimp_ray.errors import ConfigError, InputError
from gimp_ray.feed.cache import open_cache
from gimp_ray.feed.plan import Batching, CohortIndex, Plan, index_cases
from gimp_ray.feed.windows import BagCache
from gimp_ray.io.mirror import local_file
from gimp_ray.learn.cards import read_card, trained_on
from gimp_ray.runs.folder import RunFolder
from gimp_ray.store import CohortStore
from gimp_ray.store.splits import patient_column

# stages of one run draw their plans and their dropout from different streams
STAGE_SEEDS = {"genes": 1, "pretrain": 2, "finetune": 3}


class PlannedTask:
    """A task over a split of a store whose epochs come from the plan.

    Args:
        config: the run's config as plain data (`Config.model_dump()`).
        run: the run folder.
    """

    name: str
    # modalities the store must hold: `patches`, `genes`
    needs: tuple[str, ...] = ()
    # whether parts of the model are trained one after another, so that a step leaves some without a gradient
    in_turn: bool = False
    cache: BagCache | None = None

    def __init__(self, config: dict[str, Any], run: str) -> None:
        self.config: Config = build_config(config)
        self.run = RunFolder(Path(run))
        self.store = open_store(self.config)
        self._check_modalities()

    @cached_property
    def parts(self) -> dict[str, tuple[str, ...]]:
        """Case ids of `train`, `val` and `test`."""
        split = self.store.split(self.config.split.scheme, self.config.split.fold)
        return {"train": split.train, "val": split.val, "test": split.test}

    @cached_property
    def index(self) -> CohortIndex:
        return index_cases(self.store, self.training_cases())

    @cached_property
    def validation(self) -> CohortIndex | None:
        return index_cases(self.store, self.parts["val"]) if self.parts["val"] else None

    @property
    def settings(self) -> TrainConfig:
        return self.config.stage_train(self.name)

    @property
    def seed(self) -> int:
        return self.config.seed * 10 + STAGE_SEEDS[self.name]

    @property
    def batching(self) -> Batching:
        raise AssertionError("each task says how its mini-batches are composed")

    def training_cases(self) -> tuple[str, ...]:
        return self.parts["train"]

    def cases_seen_without_labels(self) -> tuple[str, ...]:
        """What pre-training sees: the training part, or where the config says transductive the cases of all parts."""
        parts = self.parts
        if not self.config.split.transductive:
            return parts["train"]
        return tuple(case for part in parts.values() for case in part)

    @cached_property
    def plan(self) -> Plan:
        return Plan(self.seed, self.settings.epochs, self.index, self.batching)

    @cached_property
    def patients(self) -> NDArray[np.int64]:
        """(cases,) number of each case's patient, who may have several: two samples of one TCGA patient are one."""
        return np.unique(patients_of(self.store, self.index.case_ids), return_inverse=True)[1].astype(np.int64)

    def keep_bags(self, device: torch.device, *indexes: CohortIndex) -> None:
        """Open the cache of `feed.cache` for the slides of some indexes; the model is there, and its memory taken."""
        feed = self.config.feed
        self.cache = open_cache(self.store, indexes, feed.cache, feed.cache_gb, device)

    def preflight(self) -> None:
        """Refuse, before anything is started, models from elsewhere that must not be used here."""

    def refuse_leak(self, card: dict[str, Any], file: str) -> None:
        """Refuse a model that saw cases which this run validates or tests on, unless the run says it is transductive.

        Raises:
            InputError: names a case.
        """
        if self.config.split.transductive:
            return
        # another store's cases are known by the patients that it names, since its case table is not here
        seen = set(patients_of(self.store, trained_on(card))) | set(card.get("patients", ()))
        held_out_cases = sorted(case for name in ("val", "test") for case in self.parts[name])
        patients = patients_of(self.store, held_out_cases)
        leaked = [case for case, patient in zip(held_out_cases, patients, strict=True) if patient in seen]
        if leaked:
            raise InputError(
                "the model was trained on patients that this run validates or tests on",
                file=file,
                case=leaked[0],
                expected="a model trained inside this fold",
                found=f"{len(leaked)} of {len(held_out_cases)} cases were seen in training",
                fix="use a model of this fold, or say split.transductive: true, and every table will say so",
            )

    def seen_in_training(self, *starts: str | None) -> dict[str, list[str]]:
        """Of a card: the cases and patients that the model saw, those of the models it started from among them."""
        cases = set(self.training_cases())
        patients = set(patients_of(self.store, cases))
        for start in starts:
            if start is not None:
                card = read_card(local_file(start))
                cases |= set(trained_on(card))
                patients |= set(card.get("patients", ())) | set(patients_of(self.store, trained_on(card)))
        return {"trained_on": sorted(cases), "patients": sorted(patients)}

    def labels_of(self, cases: NDArray[np.int64]) -> NDArray[np.int64]:
        return self.index.labels[cases]

    def _check_modalities(self) -> None:
        have = {"patches": self.store.dim is not None, "genes": self.store.num_genes > 0}
        for modality in self.needs:
            if not have[modality]:
                raise InputError(
                    f"stage '{self.name}' needs {modality}, and the store has none",
                    file=self.store.path,
                    fix=f"ingest again with --{modality}",
                )


def open_store(config: Config) -> CohortStore:
    """The config's store.

    Raises:
        ConfigError: no store was named.
    """
    if config.store is None:
        raise ConfigError(
            "no store was given",
            expected="store: PATH",
            found="nothing",
            fix="add --store STORE, or store: in the config",
        )
    return CohortStore.open(config.store)


def patients_of(store: CohortStore, case_ids: Iterable[str]) -> list[str]:
    """The patient of each case: what the case table's column `patient_id` says, else what the id says."""
    ids = pa.array([str(case) for case in case_ids], pa.string())
    patients: list[str] = patient_column(ids, store.cases).to_pylist()
    return patients


def shared_out(index: CohortIndex, rank: int, world_size: int) -> list[int]:
    """The case numbers one rank works on; the largest bags first, so that ranks end together."""
    order = np.argsort(-index.case_patches(), kind="stable") if len(index.slide_ids) else np.arange(index.num_cases)
    return [int(case) for case in order[rank::world_size]]


def in_chunks(items: NDArray[np.str_] | list[str] | tuple[str, ...], size: int) -> Iterator[list[str]]:
    for at in range(0, len(items), size):
        yield [str(item) for item in items[at : at + size]]
