"""What the tasks with a target share: which cases have a known truth, and which figure of theirs picks the epoch."""

from __future__ import annotations

from functools import cached_property

from gimp_ray.engine.protocol import Record
from gimp_ray.feed.plan import CohortIndex, index_cases
from gimp_ray.learn.stage import Stage
from gimp_ray.learn.targets import Target, check_target, known_parts, make_target


class LabelledTask(Stage):
    """A task that is trained for `config.target`; cases whose truth is not known are left out."""

    @cached_property
    def target(self) -> Target:
        """What is predicted, fitted on the training part."""
        return make_target(self.config, self.store, self.parts["train"])

    @cached_property
    def known(self) -> dict[str, tuple[str, ...]]:
        """The parts of the split without the cases whose truth is not known."""
        return known_parts(self.target, self.parts)

    @cached_property
    def validation(self) -> CohortIndex | None:
        return index_cases(self.store, self.known["val"]) if self.known["val"] else None

    @cached_property
    def select(self) -> str:
        """The figure that picks the epoch: one for the whole run, decided by the truth of the validation cases."""
        return self.target.selected(self.known["val"], self.config.finetune.select)[0]

    def training_cases(self) -> tuple[str, ...]:
        return self.known["train"]

    def notes_on_target(self) -> list[str]:
        """What is to be said of the target on this split before anything is started.

        Raises:
            InputError, ConfigError: the target cannot be trained on this split.
        """
        cases = self.batching.size * max(1, self.settings.fewest_workers or self.settings.most_workers)
        return check_target(self.target, self.parts, self.config.finetune.select, cases)

    def score(self, records: list[Record]) -> tuple[dict[str, float], list[float]]:
        figures = self.target.figures(records)
        return figures, self.target.score(figures, self.select)
