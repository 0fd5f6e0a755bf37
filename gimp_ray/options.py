"""`Options`: choices of a command, typed by pydantic; an unknown name or an impossible value is a ConfigError."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from gimp_ray.errors import ConfigError


class Options(BaseModel):
    """Frozen, flat options, made by keyword.

    Raises:
        ConfigError: an unknown name or an impossible value; the message names the option.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def __init__(self, **given: Any) -> None:
        try:
            super().__init__(**given)
        except ValidationError as error:
            first = error.errors()[0]
            key, message = ".".join(str(part) for part in first["loc"]), first["msg"].removeprefix("Value error, ")
            if first["type"] == "extra_forbidden":
                expected = "one of " + ", ".join(type(self).model_fields)
                raise ConfigError(
                    f"unknown option '{key}'", expected=expected, found=key, fix="correct its name"
                ) from None
            what = f"impossible value for option '{key}'" if key else "the options do not go together"
            found = repr(first["input"]) if key else None
            raise ConfigError(what, expected=message, found=found, fix="correct the value") from None
