"""The shipped files share one module in the kernel, so their names are unique."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from bridgehead._protocol.bootstrap import SHIPPED
from bridgehead._shipped import data as _data


def test_the_shipped_files_define_no_name_twice() -> None:
    files = [*SHIPPED, *(f"data/{name}.py" for name in _data.FILES)]
    taken: dict[str, Any] = {}
    for file in files:
        dotted = file.removesuffix(".py").replace("/", ".")
        module = import_module(f"bridgehead._shipped.{dotted}")
        for name, value in vars(module).items():
            if getattr(value, "__module__", None) == module.__name__:
                assert name not in taken, name
                taken[name] = value
    assert len(taken) > 400
