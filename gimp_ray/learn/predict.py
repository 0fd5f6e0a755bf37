"""A trained model from its file, and what it says of every case of a cohort, shared among the ranks: its predictions,
CLS_pat where it has one, and the mean patch.

Memory is bounded by one bag. Metrics and figures are made from the table written here.

Shape suffixes: B batch, N cases, F width of CLS_pat, P predictions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gimp_ray.config import Config
from gimp_ray.config_files import build_config
from gimp_ray.engine.protocol import Record, Tensors, World
from gimp_ray.errors import InputError
from gimp_ray.feed.plan import index_cases
from gimp_ray.io.mirror import local_file, new_file
from gimp_ray.learn.gene_side import GeneSide, encode_cases, rebuild_gene_side
from gimp_ray.learn.gene_values import GeneValues, rebuild_gene_values
from gimp_ray.learn.scores import by_case
from gimp_ray.learn.stage import open_store, shared_out
from gimp_ray.learn.start import check_patch_dim
from gimp_ray.learn.targets import Target, known_parts, saved_target
from gimp_ray.learn.whole_cases import whole_cases
from gimp_ray.methods import find
from gimp_ray.methods.base import Sizes, Stage, Supervise
from gimp_ray.runs.model import part, read_model
from gimp_ray.store import CohortStore

VECTORS = ("cls_pat", "mean_patch")


@dataclass(frozen=True)
class SavedModel:
    """A trained model, matched to a store.

    Attributes:
        does: what its method says of its stage.
        network: in evaluation mode.
        genes: the fitted input of its genes; None where it has none.
        side: its gene encoder; None where it has none.
        target: what it predicts; None of a pre-trained model.
        card: beside its weights.
    """

    does: Stage
    network: nn.Module
    genes: GeneValues | None
    side: GeneSide | None
    target: Target | None
    card: dict[str, Any]

    def to(self, device: torch.device) -> SavedModel:
        """The same, its tensors moved to a device."""
        self.network.to(device)
        if self.genes is not None:
            self.genes.input.to(device)
        return self

    @property
    def columns(self) -> NDArray[np.int64] | None:
        """Place of each of its genes in the store; None where both orders are the same."""
        source = self.genes or self.side
        return None if source is None else source.columns

    @torch.no_grad()
    def answer(self, batch: Tensors) -> Any:
        """The network's output for a batch with `patches` (B, N, E), maybe `valid`, and raw `genes` in the card's order
        or `cls_ge`.
        """
        wanted = {key: value for key, value in batch.items() if key != "patches" or "patches" in self.does.needs}
        if self.genes is not None:
            wanted["genes"] = self.genes.input(batch["genes"])
        return self.does.answer(self.network, wanted)

    def predict(self, batch: Tensors) -> Tensor:
        """(B, P) float64 of a batch as `answer` takes it."""
        return self.predictions(self.answer(batch))

    def predictions(self, out: Any) -> Tensor:
        """(B, P) float64 of a network's output."""
        assert isinstance(self.does, Supervise) and self.target is not None
        return self.does.phases[-1].predict(self.target, out)


def load_model(file: Path, store: CohortStore) -> SavedModel:
    """A model file for use on a store.

    Raises:
        InputError: a file is missing or damaged, the store's embeddings have another width, or it lacks what the model
            reads.
    """
    weights, card = read_model(file)
    method = find(card["method"])
    does, config = method.stage(card["stage"]), method.config.model_validate(settings_of(card))
    check_patch_dim(card, store.dim, store.path)
    genes = side = target = None
    if isinstance(does, Supervise):
        target = saved_target(card, store)
    if "genes" in does.needs and isinstance(does, Supervise):
        if not store.num_genes:
            raise InputError(
                "the model reads genes and the store has none", file=store.path, fix="ingest again with --genes"
            )
        genes = rebuild_gene_values(card["genes"], part(weights, "input"), store, file)
    elif card["genes"] is not None:
        side = rebuild_gene_side(card["genes"], part(weights, "net.gene_encoder"), store, file)
    sizes = Sizes(
        patch_dim=card["patch_dim"],
        num_genes=0 if genes is None else genes.input.num_kept,
        outputs=card.get("outputs", 0),
        sets=None if genes is None else genes.sets,
        encoder=None if side is None else side.encoder,
        gene_dim=0 if side is None else side.dim,
    )
    trained = part(weights, "net")
    if isinstance(does, Supervise):
        network = does.network(config, sizes)
        network.load_state_dict(trained)
    else:
        # both sides have their weights, and what else pre-training had is not asked
        network = does.embed(config, sizes)
        kept = {name: value for name, value in trained.items() if name.startswith(("aggregator.", "gene_encoder."))}
        network.load_state_dict(network.state_dict() | kept)
    return SavedModel(does, network.eval(), genes, side, target, card)


def settings_of(card: Mapping[str, Any]) -> dict[str, Any]:
    """The config that a card's model is made of, as plain data."""
    tree: dict[str, Any] = dict(card["config"])
    return tree | {"method": {"name": card["method"]} | tree.get("method", {})}


class CohortWork:
    """Embeds and predicts cases of a store with a trained model of any method.

    Args:
        config: the run's config as plain data; its `store` is read.
        model: the model file (`.safetensors`, its card beside it), here or in object storage.
        out: Parquet file to write, here or in object storage: case_id, part, label, cls_pat where the model has it,
            mean_patch where the store has patches, and of a model with a target what of the truth the store has, and
            the target's predictions.
        parts: parts of the config's split, without the cases whose truth the model's target does not know; None takes
            every case of the store, and part is then null.
    """

    name = "embed"

    def __init__(self, config: dict[str, Any], model: str, out: str, parts: list[str] | None) -> None:
        self.config: Config = build_config(config)
        self.model, self.out, self.parts = model, out, parts
        self.store: CohortStore = open_store(self.config)

    @cached_property
    def saved(self) -> SavedModel:
        return load_model(local_file(self.model), self.store)

    @cached_property
    def part_of(self) -> dict[str, str | None]:
        """The cases, with the part each stands in."""
        if self.parts is None:
            return dict.fromkeys(self.store.cases["case_id"].to_pylist())
        split = self.store.split(self.config.split.scheme, self.config.split.fold)
        cases: dict[str, tuple[str, ...]] = {name: getattr(split, name) for name in self.parts}
        if self.saved.target is not None:
            cases = known_parts(self.saved.target, cases)
        found: dict[str, str | None] = {case: name for name, ids in cases.items() for case in ids}
        if not found:
            raise InputError(
                "no case to embed",
                file=self.store.path,
                found=f"parts {list(self.parts)} without a case whose truth is known",
                fix="choose other parts",
            )
        return found

    @torch.no_grad()
    def run(self, world: World) -> list[Record]:
        saved, store = self.saved.to(world.device), self.store
        index = index_cases(store, list(self.part_of))
        mine = shared_out(index, world.rank, world.size)
        # the mean patch of a case stands in the table whether the method reads patches or not
        needs = tuple(dict.fromkeys([*saved.does.needs, *(["patches"] if store.dim is not None else [])]))
        label_of = {str(index.case_ids[case]): store.classes[index.labels[case]] for case in mine}
        cls_ge = {}
        if saved.side is not None and mine:
            needs = tuple(name for name in needs if name != "genes")
            ids = [str(index.case_ids[case]) for case in mine]
            cls_ge = dict(zip(ids, encode_cases(saved.side, store, ids, world.device), strict=True))
        records: list[Record] = []
        for ids, batch in whole_cases(store, index, mine, needs, self.config.feed, world.device, saved.columns):
            given = {"cls_ge": torch.stack([cls_ge[case] for case in ids])} if cls_ge else {}
            out = saved.answer(batch | given)
            shown: dict[str, list[Any]] = {}
            if hasattr(out, "cls_pat"):
                shown["cls_pat"] = list(out.cls_pat.float().cpu().numpy())
            if "patches" in batch:
                shown["mean_patch"] = list(batch["patches"].mean(dim=1, dtype=torch.float32).cpu().numpy())
            if saved.target is not None:
                shown["predictions"] = saved.predictions(out).cpu().tolist()
            records += [
                {"case_id": case, "label": label_of[case], **{name: rows[place] for name, rows in shown.items()}}
                for place, case in enumerate(ids)
            ]
        return records

    def write(self, records: list[Record]) -> None:
        ordered, target = by_case(records), self.saved.target
        ids = [record["case_id"] for record in ordered]
        columns: dict[str, Any] = {
            "case_id": pa.array(ids, pa.string()),
            "part": pa.array([self.part_of[case] for case in ids], pa.string()),
            "label": pa.array([record["label"] for record in ordered], pa.string()),
        }
        columns |= {name: _vectors([record[name] for record in ordered]) for name in VECTORS if name in ordered[0]}
        if target is not None:
            columns |= target.truths(ids)
            predictions = np.array([record["predictions"] for record in ordered], np.float64)
            columns |= {name: pa.array(predictions[:, number]) for number, name in enumerate(target.columns)}
        with new_file(self.out) as aside:
            pq.write_table(pa.table(columns), aside)


def has_both_sides(card: Mapping[str, Any]) -> bool:
    """Whether a fine-tuned model's CLS_pat has an image side and a gene side."""
    return card.get("genes") is not None and _head(card) is not None


def image_width(card: Mapping[str, Any]) -> int:
    """Width of the image side of CLS_pat."""
    return int(card["config"]["model"]["dim"])


def without(
    modality: Literal["images", "genes"], cls_pat_NF: NDArray[np.float32], training_N: NDArray[np.bool_], dim: int
) -> NDArray[np.float32]:
    """(N, F) CLS_pat with the side of a modality replaced by its mean over the training cases.

    Args:
        modality: what is missing at test.
        cls_pat_NF: CLS_img, then CLS_ge.
        training_N: bool, True = the case is of the training part.
        dim: width of CLS_img.

    Raises:
        InputError: there is no training case, or no gene side.
    """
    if not training_N.any() or cls_pat_NF.shape[1] <= dim:
        raise InputError(
            "a missing modality needs training cases and a model with both sides",
            expected=f"training cases, and CLS_pat wider than {dim}",
            found=f"{int(training_N.sum())} training cases, width {cls_pat_NF.shape[1]}",
        )
    side = slice(0, dim) if modality == "images" else slice(dim, None)
    changed_NF = cls_pat_NF.copy()
    changed_NF[:, side] = cls_pat_NF[training_N, side].mean(axis=0, dtype=np.float64)
    return changed_NF


@torch.no_grad()
def predict_from_cls(
    model: Path, card: Mapping[str, Any], target: Target, cls_pat_NF: NDArray[np.float32]
) -> NDArray[np.float64]:
    """(N, P) predictions of a fine-tuned model's head from CLS_pat.

    Args:
        model: the fine-tuned model's file.
        card: its card.
        target: what it predicts.
        cls_pat_NF: CLS_img, then CLS_ge.
    """
    make = _head(card)
    assert make is not None
    config = find(card["method"]).config.model_validate(settings_of(card))
    head = make(config, cls_pat_NF.shape[1], len(target.outputs))
    head.load_state_dict(part(read_model(model)[0], "net.head"))
    predictions: NDArray[np.float64] = target.predict(head.eval()(torch.from_numpy(cls_pat_NF))).numpy()
    return predictions


def _head(card: Mapping[str, Any]) -> Any:
    does = find(card["method"]).stage(card["stage"])
    return does.head if isinstance(does, Supervise) else None


def _vectors(rows: Sequence[NDArray[Any]]) -> pa.FixedSizeListArray:
    """Vectors of one width as a float32 column."""
    flat = np.concatenate(rows).astype(np.float32)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), len(rows[0]))
