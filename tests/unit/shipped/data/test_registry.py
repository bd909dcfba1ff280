"""No name is used twice in what is shipped."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from bridgehead._shipped import data as _data
from bridgehead._shipped.remote import entry as _loader
from bridgehead._shipped.remote import inspection as _inspection
from bridgehead._shipped.remote import kernel as _host
from bridgehead._shipped.remote import subscriptions as _watched
from bridgehead._shipped.wire import digest as _digest
from bridgehead._shipped.wire import errors as _errors
from bridgehead._shipped.wire import frames as _wire
from bridgehead._shipped.wire import header as _header
from bridgehead._shipped.wire import transfer as _transfer


def test_no_name_is_used_twice_in_what_is_shipped() -> None:
    taken: dict[str, Any] = {}
    parts = [import_module(f"bridgehead._shipped.data.{name}") for name in _data.FILES]
    wire = (_digest, _errors, _wire, _header, _transfer)
    for module in (*wire, _host, _inspection, _watched, _loader, *parts):
        for name, value in vars(module).items():
            if getattr(value, "__module__", None) == module.__name__:
                assert name not in taken, name
                taken[name] = value
