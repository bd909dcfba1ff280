"""The shipped files share one module in the kernel, so their names are unique."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from bridgehead._shipped import data as _data
from bridgehead._shipped.remote import entry as _entry
from bridgehead._shipped.remote import inspection as _inspection
from bridgehead._shipped.remote import kernel as _kernel
from bridgehead._shipped.remote import subscriptions as _subscriptions
from bridgehead._shipped.wire import digest as _digest
from bridgehead._shipped.wire import errors as _errors
from bridgehead._shipped.wire import frames as _frames
from bridgehead._shipped.wire import header as _header
from bridgehead._shipped.wire import transfer as _transfer


def test_the_shipped_files_define_no_name_twice() -> None:
    taken: dict[str, Any] = {}
    parts = [import_module(f"bridgehead._shipped.data.{name}") for name in _data.FILES]
    wire = (_digest, _errors, _frames, _header, _transfer)
    for module in (*wire, _kernel, _inspection, _subscriptions, _entry, *parts):
        for name, value in vars(module).items():
            if getattr(value, "__module__", None) == module.__name__:
                assert name not in taken, name
                taken[name] = value
