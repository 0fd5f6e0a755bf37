"""The methods, one file each: settings, network, losses of its own, stages and needs, as `METHOD`."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from typing import TYPE_CHECKING

from gimp_ray.errors import ConfigError

if TYPE_CHECKING:  # it imports torch, which commands without a method need not wait for
    from gimp_ray.methods.base import Method


@functools.cache
def find(name: str) -> Method:
    """The method of a name: `mcat` is a file of this package, `my_package.mine` a module of yours on PYTHONPATH.

    Raises:
        ConfigError: there is no such module, or it has no METHOD.
    """
    from gimp_ray.methods.base import Method

    module = name if "." in name else f"{__name__}.{name}"
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the module is there, and lacks something itself
        found = None
    method = getattr(found, "METHOD", None)
    if isinstance(method, Method):
        return method
    raise ConfigError(
        f"impossible value for config key 'method.name': there is no method '{name}'",
        expected=f"one of {', '.join(available())}, or a module of yours as package.module, with METHOD = Method(...)",
        found=name if found is None else f"{found.__file__} without METHOD",
        fix="correct method.name; `gimp methods` lists them, and docs/adding-a-method.md says how to write one",
    )


def available() -> dict[str, Method]:
    """The methods of this package by their names."""
    from gimp_ray.methods.base import Method

    modules = {one.name: importlib.import_module(f"{__name__}.{one.name}") for one in pkgutil.iter_modules(__path__)}
    return {
        name: module.METHOD for name, module in modules.items() if isinstance(getattr(module, "METHOD", None), Method)
    }
