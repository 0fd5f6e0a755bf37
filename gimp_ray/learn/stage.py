"""A stage is what it was given: its settings, a seed, the cases of its split, a store, and the files it starts from.

`inputs` says all of that as plain data and `digest` is its SHA-256; they stand in the stage's checkpoints and in its
model's card, and alone decide what may be continued, refused or used again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from gimp_ray.config import Config, Section
from gimp_ray.config_files import build_config, flatten, is_free
from gimp_ray.errors import ConfigError, InputError
from gimp_ray.feed.cache import open_cache
from gimp_ray.feed.plan import Batching, CohortIndex, Plan, index_cases
from gimp_ray.feed.windows import BagCache
from gimp_ray.io.mirror import local_file
from gimp_ray.io.storage import StorageError
from gimp_ray.methods import find
from gimp_ray.runs.folder import RunFolder
from gimp_ray.runs.model import Inputs, digest_of, read_card, sha256_of, trained_on
from gimp_ray.store import CohortStore
from gimp_ray.store.splits import patient_column

# how batches are read changes nothing, and the split counts by its cases: every stage may look at both
GIVEN_TO_ALL = ("feed", "split")


class Given(SimpleNamespace):
    """The settings that a stage was given, as attributes like those of the config; any other is an AttributeError.

    Args:
        config: the whole config.
        keys: sections (`mask`) and keys (`model.dim`).
    """

    def __init__(self, config: Config, keys: Iterable[str]) -> None:
        super().__init__()
        for key in keys:
            section, _, name = key.partition(".")
            value = getattr(config, section)
            if not name:
                setattr(self, section, value)
            elif not isinstance(there := self.__dict__.setdefault(section, SimpleNamespace()), Section):
                setattr(there, name, getattr(value, name))


class Stage:
    """What the stages share: what they were given, an index of the training cases, and epochs that come from the plan.

    Args:
        config: the run's config as plain data (`Config.model_dump()`).
        run: the run folder.
        stage: name of one of the stages of the config's method.

    Attributes:
        does: what the method says of the stage.
        config: of it the keys in `reads`, nothing else.
        settings: how it is trained.
        seed: of its own, so that two stages of a run draw from different streams.
        files: files it starts from, by the config key that may name one.
    """

    # whether parts of the model are trained one after another, so that a step leaves some without a gradient
    in_turn: bool = False
    cache: BagCache | None = None

    def __init__(self, config: dict[str, Any], run: str, stage: str) -> None:
        whole = build_config(config)
        self.method = whole.method.name
        self.does: Any = find(self.method).stage(stage)
        self.name: str = self.does.name
        self.reads: tuple[str, ...] = self.does.reads
        # modalities the store must hold: `patches`, `genes`
        self.needs: tuple[str, ...] = self.does.needs
        self.run = RunFolder(run)
        self.store = open_store(whole)
        self.config: Any = Given(whole, (*self.reads, *GIVEN_TO_ALL))
        self.settings = whole.stage_train(self.name)
        self.seed = stage_seed(whole.seed, self.name)
        self._config_seed, self._kind = whole.seed, type(whole)
        self.files = self.starts_from(whole)
        self._check_modalities()

    def starts_from(self, config: Config) -> dict[str, str]:
        """The files it starts from, here or in object storage, by the config key that may name them."""
        starts = self.does.starts(config, self.store.num_genes > 0)
        return {
            key: str(self.run.model_file(file.removeprefix("stage:"))) if file.startswith("stage:") else file
            for key, file in starts.items()
        }

    def file(self, key: str) -> Path:
        """One of `files` as a local file."""
        return local_file(self.files[key])

    @cached_property
    def inputs(self) -> Inputs:
        """All that its result depends on; of a file its SHA-256, None where it is not there."""
        settings: dict[str, Any] = {"method.name": self.method}
        for key in self.reads:
            value: Any = self.config
            for name in key.split("."):
                value = getattr(value, name)
            settings |= flatten({key: value.model_dump() if isinstance(value, Section) else value})
        own = {key: value for key, value in settings.items() if ".train." not in key}
        trained = flatten({"train": self.settings.model_dump(exclude={"log"})})
        split = {part: f"{len(cases)} cases, SHA-256 {digest_of(cases)}" for part, cases in self.parts.items()}
        tree = {
            "stage": self.name,
            "settings": {key: value for key, value in (own | trained).items() if not is_free(key, self._kind)},
            "seed": self._config_seed,
            "store": self.store.fingerprint,
            "split": split,
            "files": {key: content_of(file) for key, file in self.files.items()},
        }
        plain: Inputs = json.loads(json.dumps(tree))  # as it is when it was read from a file
        return plain

    @property
    def digest(self) -> str:
        return digest_of(self.inputs)

    @cached_property
    def parts(self) -> dict[str, tuple[str, ...]]:
        """Case ids of `train`, `val` and `test`."""
        scheme, fold = self.config.split.scheme, self.config.split.fold
        split = self.store.split(scheme, fold)
        if not self.store.is_complete:
            whole = self.store.split(scheme, fold, complete=False)
            left_out = sum(len(one.train + one.val + one.test) * sign for one, sign in ((whole, 1), (split, -1)))
            print(f"note: stage '{self.name}' leaves out {left_out:,} cases without a label, patches or expression")
        return {"train": split.train, "val": split.val, "test": split.test}

    @cached_property
    def index(self) -> CohortIndex:
        return index_cases(self.store, self.training_cases())

    @cached_property
    def validation(self) -> CohortIndex | None:
        return index_cases(self.store, self.parts["val"]) if self.parts["val"] else None

    @property
    def batching(self) -> Batching:
        raise AssertionError("each stage says how its mini-batches are composed")

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

    def refuse_leaks(self) -> None:
        """`refuse_leak` of every model from elsewhere that it starts from."""
        for key, file in self.files.items():
            if file.endswith(".safetensors") and Path(file).parent != self.run.path:
                self.refuse_leak(read_card(self.file(key)), file)

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

    def seen_in_training(self) -> dict[str, list[str]]:
        """Of a card: the cases and patients that the model saw, those of the models it started from among them."""
        cases = set(self.training_cases())
        patients = set(patients_of(self.store, cases))
        for key in self.files:
            if key.endswith(".init"):
                card = read_card(self.file(key))
                cases |= set(trained_on(card))
                patients |= set(card.get("patients", ())) | set(patients_of(self.store, trained_on(card)))
        return {"trained_on": sorted(cases), "patients": sorted(patients)}

    def card(self, genes: dict[str, Any] | None) -> dict[str, Any]:
        """What rebuilds the model and says where it comes from.

        Args:
            genes: of its gene side.
        """
        config: Any = getattr(self, "made_of", self.config)
        sections = {key.partition(".")[0] for key in self.reads} - {"split"}
        return {
            "method": self.method,
            "config": {key: _plain(getattr(config, key)) for key in sorted(sections)},
            "patch_dim": (self.store.dim or 0) if "patches" in self.needs else 0,
            "genes": genes,
            "classes": list(self.store.classes),
            "store_fingerprint": self.store.fingerprint,
            "split": self.config.split.model_dump(),
            **self.seen_in_training(),
        }

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


def _plain(settings: Any) -> dict[str, Any]:
    """A section, or the part of one that a stage was given, as plain data."""
    plain: dict[str, Any] = settings.model_dump(mode="json") if isinstance(settings, Section) else dict(vars(settings))
    return plain


def stage_seed(seed: int, stage: str) -> int:
    """A stage's own seed, of 63 bits."""
    return int.from_bytes(hashlib.sha256(f"{seed} {stage}".encode()).digest()[:8], "big") >> 1


def content_of(file: str) -> str | None:
    """SHA-256 of a file, for a model that of the weights its card is of; None where it is not there or not reached."""
    try:
        here = local_file(file)
    except (InputError, StorageError):
        return None
    if not here.exists():
        return None
    return str(read_card(here)["weights_sha256"]) if here.suffix == ".safetensors" else sha256_of(here)


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
    return CohortStore.open(config.store, verify=config.feed.verify)


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
