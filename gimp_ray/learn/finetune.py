"""Stage `finetune`: an MLP head on CLS_pat over whole bags, evaluated on validation after every epoch, the best epoch
kept (section 3).

What is predicted is the target's business (`targets.py`): the class of the paper, or labels, or survival; cases whose
truth is not known are left out. A case's bag is all its slides one after another. The gene encoder stays frozen unless
the config says otherwise.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from gimp_ray.config import Config
from gimp_ray.engine.protocol import Record, Tensors, World
from gimp_ray.feed.plan import Batching, Row
from gimp_ray.feed.windows import Arrays, read_bags
from gimp_ray.learn.gene_side import GeneSide, encode_cases, load_gene_side
from gimp_ray.learn.image_side import load_model, make_aggregator, model_card
from gimp_ray.learn.labelled import LabelledTask
from gimp_ray.learn.stage import shared_out
from gimp_ray.learn.targets import batch_arrays
from gimp_ray.learn.whole_cases import whole_cases
from gimp_ray.methods.gimp import GiMPClassifier
from gimp_ray.nn.aggregator import PatchAggregator, freeze


class Finetuning(LabelledTask):
    """The target's loss over whole bags; natural mini-batches, every training case once an epoch."""

    name = "finetune"
    reads = ("finetune", "model", "target", "objective.genes", "genes.encoder")
    needs = ("patches",)
    cls_ge: Tensor | None = None
    validation_cls_ge: Tensor | None = None

    def starts_from(self, config: Config) -> dict[str, str]:
        init, files = config.finetune.init, {}
        if init != "scratch":
            files["finetune.init"] = self.own("pretrain") if init == "pretrain" else init
        joins = init == "scratch" or not config.objective.genes
        if joins and config.genes.encoder != "none" and self.store.num_genes > 0:
            files["genes.checkpoint"] = config.genes.checkpoint or self.own("genes")
        return files

    def preflight(self) -> None:
        self.refuse_leaks()
        for note in self.notes_on_target():
            print(f"note: stage '{self.name}': {note}", flush=True)

    @property
    def batching(self) -> Batching:
        return Batching(balance="natural", size=self.config.finetune.batch_size, accumulate=self.settings.accumulate)

    def read(self, row: Row) -> Arrays:
        patches, valid = read_bags(self.store, self.index, row.case, self.config.feed.threads, self.cache)
        case_ids = self.index.case_ids[row.case].tolist()
        arrays: Arrays = {"patches": patches, "case": row.case, **batch_arrays(self.target, case_ids, row.share)}
        if not valid.all():  # bags of one length need no mask, which attention would pay for
            arrays["valid"] = valid
        if self._genes_train:
            assert self.side is not None
            arrays["genes"] = self.side.read(self.store, case_ids)
        return arrays

    def build(self, device: torch.device) -> nn.Module:
        aggregator = self._start[0]
        if self.side is not None and self.config.finetune.freeze_genes:
            self.cls_ge = encode_cases(self.side, self.store, self.index.case_ids.tolist(), device)
            if self.validation is not None:
                self.validation_cls_ge = encode_cases(self.side, self.store, self.validation.case_ids.tolist(), device)
        torch.manual_seed(self.seed)
        aggregator = aggregator or self._fresh_aggregator()
        # of this run, whatever the pre-training of the weights did
        aggregator.activation_checkpointing = self.config.model.activation_checkpointing
        encoder = None if self.side is None else self.side.encoder
        model: nn.Module = GiMPClassifier(
            aggregator,
            freeze(encoder) if encoder is not None and self.config.finetune.freeze_genes else encoder,
            len(self.target.outputs),
            aggregator.dim,
            hidden=(self.config.finetune.hidden,),
            dropout=self.config.finetune.dropout,
            gene_dim=0 if self.side is None else self.side.dim,
        )
        model = model.to(device)
        self.keep_bags(device, self.index, *([] if self.validation is None else [self.validation]))
        return model

    def loss(self, model: nn.Module, batch: Tensors) -> tuple[Tensor, dict[str, Tensor]]:
        out = model(batch["patches"], valid=batch.get("valid"), **self._gene_arguments(batch, self.cls_ge))
        return self.target.loss(out.logits, batch)

    def validate(self, model: nn.Module, world: World) -> list[Record] | None:
        index = self.validation
        if index is None:
            return None
        mine = shared_out(index, world.rank, world.size)
        needs = ("patches", "genes") if self._genes_train else ("patches",)
        columns = None if self.side is None else self.side.columns
        read = whole_cases(self.store, index, mine, needs, self.config.feed, world.device, columns, self.cache)
        records = []
        for case, (ids, batch) in zip(mine, read, strict=True):
            batch["case"] = torch.tensor([case], device=world.device)
            out = model(batch["patches"], **self._gene_arguments(batch, self.validation_cls_ge))
            records.append(self.target.record(ids[0], self.target.predict(out.logits)[0]))
        return records

    def export(self, model: nn.Module) -> tuple[Tensors, dict[str, Any]]:
        finetune = self.config.finetune
        card = model_card(self.config, self.store, self.side, self.training_cases()) | {
            "hidden": [finetune.hidden],
            "init": finetune.init,
            "target": self.target.card(),
            **self.seen_in_training(),
        }
        return dict(model.state_dict()), card

    @property
    def _genes_train(self) -> bool:
        return not self.config.finetune.freeze_genes and self.side is not None

    def _gene_arguments(self, batch: Tensors, cls_ge: Tensor | None) -> dict[str, Tensor]:
        if self.side is None:
            return {}
        if self._genes_train:
            return {"genes": batch["genes"]}
        assert cls_ge is not None
        return {"cls_ge": cls_ge[batch["case"]]}

    def _fresh_aggregator(self) -> PatchAggregator:
        assert self.store.dim is not None
        return make_aggregator(self.store.dim, self.config.model)

    @property
    def side(self) -> GeneSide | None:
        """The gene side; readable without `build`, as reads in other processes need it."""
        return self._start[1]

    @cached_property
    def _start(self) -> tuple[PatchAggregator | None, GeneSide | None]:
        """The trained aggregator, None to start from fresh weights, and the gene side: the pre-trained model's, or the
        trained encoder where pre-training saw images alone (`objective.genes`).
        """
        self.refuse_leaks()
        aggregator = side = None
        if "finetune.init" in self.files:
            saved = load_model(self.file("finetune.init"), self.store)
            aggregator, side = saved.aggregator(), saved.side
        if side is None and "genes.checkpoint" in self.files:
            side = load_gene_side(self.file("genes.checkpoint"), self.store)
        return aggregator, side
