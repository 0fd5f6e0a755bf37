"""The one exception a user sees: what went wrong, where, and what to do about it.

Left out: exit codes and printing, which are the command line's business (`gimp_ray/cli/commands.py`).
"""

from __future__ import annotations

from pathlib import PurePath


class GimpError(Exception):
    """A refusal with its reason, ready to be shown to a user.

    Args:
        what: one sentence saying what is wrong.
        file: the file or store concerned.
        case: the case or slide id concerned.
        expected: what would have been accepted.
        found: what was there instead.
        fix: what the user can do about it.
    """

    def __init__(
        self,
        what: str,
        *,
        file: str | PurePath | None = None,
        case: str | None = None,
        expected: str | None = None,
        found: str | None = None,
        fix: str | None = None,
    ) -> None:
        self.what = what
        self.file = None if file is None else str(file)
        self.case = case
        self.expected = expected
        self.found = found
        self.fix = fix
        super().__init__(what)

    def __str__(self) -> str:
        parts = [
            ("file", self.file),
            ("case", self.case),
            ("expected", self.expected),
            ("found", self.found),
            ("fix", self.fix),
        ]
        return "\n".join([self.what, *(f"  {name}: {value}" for name, value in parts if value is not None)])

    def __reduce__(self) -> tuple[object, ...]:
        # keyword-only fields survive a trip through a process pool or a Ray worker
        return (_rebuild, (type(self), self.what, self.file, self.case, self.expected, self.found, self.fix))


class InputError(GimpError):
    """Bad input: a file, table, split or store that cannot be used as it is."""


class ConfigError(GimpError):
    """A config key that is unknown or has an impossible value."""


def _rebuild(
    kind: type[GimpError],
    what: str,
    file: str | None,
    case: str | None,
    expected: str | None,
    found: str | None,
    fix: str | None,
) -> GimpError:
    return kind(what, file=file, case=case, expected=expected, found=found, fix=fix)
