"""The gene side of every task: building the encoder, fitting its input on training cases, saving, loading, encoding
cases.

Genes are matched by id: a trained encoder reads any store that has its genes, whatever their order. CLS_ge of a
frozen encoder is computed once a stage, not once a step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gimp_ray.cohort import CohortStore
from gimp_ray.config import GenesConfig
from gimp_ray.errors import InputError
from gimp_ray.feed.plan import CohortIndex
from gimp_ray.models import SNN, GeneEncoder, GeneInput, GroupMSA, fit_fragments, freeze
from gimp_ray.run_folder import RunFolder
from gimp_ray.run_mirror import local_file
from gimp_ray.tasks.cards import read_card
from gimp_ray.tasks.gene_layout import arranged, layout_of_sets
from gimp_ray.tasks.planned import in_chunks
from gimp_ray.weights import load_weights

CHUNK = 64  # cases read at once
LINEAR_UNITS = ("fpkm", "rpkm", "tpm", "cpm", "rsem", "count")
SCALED_UNITS = ("log", "zscore", "vst", "rma")


@dataclass(frozen=True)
class GeneSide:
    """A gene encoder, its card and where its genes stand in a store.

    Attributes:
        encoder: raw expression in the card's gene order -> CLS_ge.
        card: what rebuilds the encoder: kind, widths, gene ids.
        columns: place of each of the card's genes in the store; None where both orders are the same.
    """

    encoder: GeneEncoder
    card: dict[str, Any]
    columns: NDArray[np.int64] | None

    @property
    def dim(self) -> int:
        return int(self.card["dim"])

    def read(self, store: CohortStore, case_ids: Sequence[str]) -> NDArray[np.float32]:
        """(n, G) raw expression of some cases in the encoder's gene order."""
        values = store.read_genes(list(case_ids))
        return values if self.columns is None else values[:, self.columns]


def fit_gene_side(store: CohortStore, index: CohortIndex, genes: GenesConfig, dim: int) -> GeneSide:
    """A fresh encoder whose input statistics are fitted on the index's (training) cases alone."""
    log = needs_log(store, index) if genes.log is None else genes.log
    try:
        gene_input = GeneInput.fit(
            _training_rows(store, index),
            log=log,
            top_genes=0 if genes.sets else genes.top_genes,
            select_by=genes.select_by,
            order=genes.order,
            clip=genes.clip,
        )
    except ValueError as error:
        raise InputError("the genes cannot be scaled", file=store.path, found=str(error), fix="see genes.log") from None
    fragments, groups, sets = genes.fragments, genes.groups, None
    if genes.sets is not None:
        sets = layout_of_sets(Path(genes.sets), store, genes.fragments)
        gene_input, fragments, groups = arranged(gene_input, sets), sets.fragments, len(sets.names)
    card = {
        "encoder": genes.encoder,
        "dim": dim,
        "num_genes": store.num_genes,
        "num_kept": gene_input.num_kept,
        "fragments": fragments,
        "groups": groups,
        "gene_sets": None if sets is None else {"names": sets.names, "sha256": sets.sha256},
        "heads": genes.heads,
        "ff_mult": genes.ff_mult,
        "dropout": genes.dropout,
        "gene_dropout": genes.gene_dropout,
        "log": log,
        "gene_unit": store.manifest.gene_unit,
        "gene_ids": store.gene_ids,
        "fitted_on": [str(case) for case in index.case_ids],
    }
    return GeneSide(GeneEncoder(gene_input, _network(card)), card, None)


def rebuild_gene_side(card: dict[str, Any], weights: dict[str, Tensor], store: CohortStore, file: Path) -> GeneSide:
    """The encoder of a card and its weights (keys `input.*`, `net.*`), matched to a store's genes by id."""
    _same_unit(card, store, file)
    gene_input = GeneInput(card["num_genes"], num_kept=card["num_kept"])
    encoder = GeneEncoder(gene_input, _network(card))
    encoder.load_state_dict(weights)
    return GeneSide(encoder, card, _columns(card, store, file))


def load_gene_side(file: Path, store: CohortStore) -> GeneSide:
    """A trained gene encoder from `FILE.safetensors` and the card beside it.

    Raises:
        InputError: a file is missing, or the store lacks genes of the encoder.
    """
    card = read_card(file)
    weights = {name: value for name, value in load_weights(file).items() if not name.startswith("head.")}
    return rebuild_gene_side(card["genes"], weights, store, file)


def trained_gene_side(genes: GenesConfig, run: RunFolder, store: CohortStore) -> GeneSide | None:
    """The gene encoder the config names, else the run's own; None where there is no gene side."""
    if genes.encoder == "none" or not store.num_genes:
        return None
    return load_gene_side(local_file(genes.checkpoint) if genes.checkpoint else run.model_file("genes"), store)


@torch.no_grad()
def encode_cases(side: GeneSide, store: CohortStore, case_ids: Sequence[str], device: torch.device) -> Tensor:
    """(n, D) CLS_ge of some cases under the frozen encoder."""
    encoder = freeze(side.encoder).to(device)
    parts = [
        encoder(torch.from_numpy(side.read(store, chunk)).to(device)) for chunk in in_chunks(list(case_ids), CHUNK)
    ]
    return torch.cat(parts)


def needs_log(store: CohortStore, index: CohortIndex) -> bool:
    """Whether expression is on a linear scale: by the declared unit, or where that is unknown by its size.

    Raises:
        InputError: the unit is none that is known to be linear or not.
    """
    unit = _plain(store.manifest.gene_unit)
    if unit == "unknown":
        sample = store.read_genes([str(case) for case in index.case_ids[:CHUNK]])
        # log2(x + 1) of any expression unit stays well below this; linear units pass it by far
        return bool(sample.min() >= 0 and sample.max() > 30)
    if any(word in unit for word in SCALED_UNITS):
        return False
    if any(word in unit for word in LINEAR_UNITS):
        return True
    raise InputError(
        "the unit of the genes says neither that they are linear nor that they are not",
        file=store.path,
        expected=f"a unit with one of {', '.join((*LINEAR_UNITS, *SCALED_UNITS))}",
        found=str(store.manifest.gene_unit),
        fix="say genes.log: true to take log2(x + 1), or genes.log: false",
    )


def _plain(unit: str | None) -> str:
    """A unit without the ways of writing it."""
    return (unit or "unknown").lower().replace(" ", "").replace("-", "")


def _same_unit(card: dict[str, Any], store: CohortStore, file: Path) -> None:
    trained, here = _plain(card["gene_unit"]), _plain(store.manifest.gene_unit)
    if "unknown" not in (trained, here) and trained != here:
        raise InputError(
            "the gene encoder was trained on another unit",
            file=file,
            expected=str(card["gene_unit"]),
            found=f"{store.manifest.gene_unit} in {store.path}",
            fix="ingest the genes in the encoder's unit",
        )


def _training_rows(store: CohortStore, index: CohortIndex) -> Iterator[tuple[Tensor, Tensor]]:
    for at in range(0, index.num_cases, CHUNK):
        rows = slice(at, at + CHUNK)
        values = store.read_genes([str(case) for case in index.case_ids[rows]])
        yield torch.from_numpy(values), torch.from_numpy(index.labels[rows])


def _network(card: dict[str, Any]) -> nn.Module:
    if card["encoder"] == "snn":
        return SNN(card["num_kept"], card["dim"], dropout=card["dropout"])
    fragments, groups = fit_fragments(card["num_kept"], card["fragments"], card["groups"])
    return GroupMSA(
        card["num_kept"],
        card["dim"],
        fragments,
        groups,
        heads=_heads(card["dim"], card["heads"]),
        ff_mult=card["ff_mult"],
        dropout=card["dropout"],
        gene_dropout=card["gene_dropout"],
    )


def _heads(dim: int, wished: int) -> int:
    """The most heads, up to the wish, that divide the width: a small `model.dim` then needs no second setting."""
    return next(heads for heads in range(min(wished, dim), 0, -1) if dim % heads == 0)


def _columns(card: dict[str, Any], store: CohortStore, file: Path) -> NDArray[np.int64] | None:
    wanted, have = card["gene_ids"], store.gene_ids
    if wanted == have:
        return None
    place = {gene: number for number, gene in enumerate(have)}
    missing = [gene for gene in wanted if gene not in place]
    if missing:
        raise InputError(
            "the store lacks genes that the encoder was trained on",
            file=file,
            expected=f"{len(wanted)} genes",
            found=f"{len(missing)} of them missing from {store.path}, the first being {missing[0]}",
            fix="ingest the store with the same gene list, or train a gene encoder on it",
        )
    return np.array([place[gene] for gene in wanted], dtype=np.int64)
