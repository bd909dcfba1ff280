"""The models of widgets, as a notebook file keeps them.

Rule: messages of comms in, a part of a notebook's metadata out. Which outputs an ``Output`` widget
takes is known here. How an output is written belongs to ``notebook``.

Facts this file rests on, read and measured (ipywidgets 8.1):

- The state of a model comes with ``comm_open``, changes of it with ``comm_msg``. What is binary is
  not in the state: it is a buffer of the message, and ``buffer_paths`` names its place.
- ``with output:`` sets the model's ``msg_id`` to the id of the cell's message, and back to nothing
  at its end. Clients put the outputs between into the model. No client tells the kernel here.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from bridgehead._transports.messages import Message

STATES = "application/vnd.jupyter.widget-state+json"
PARTS = {name: f"_{name}" for name in ("model_name", "model_module", "model_module_version")}


class WidgetModels:
    """The models of the widgets that cells have made."""

    def __init__(self) -> None:
        self._states: dict[str, dict[str, Any]] = {}  # by the comm's id
        self._buffers: dict[str, dict[str, Any]] = {}  # by the comm's id and the buffer's place
        # By the id of a cell's message: the widgets that take its outputs, the innermost last.
        self._taking: dict[str, list[str]] = {}

    def take(self, message: Message) -> None:
        """Note what a comm's message says of a model."""
        identity, data = str(message.content.get("comm_id")), message.content.get("data")
        changes = data.get("state") if isinstance(data, Mapping) else None
        if not isinstance(data, Mapping) or not isinstance(changes, Mapping):
            return  # a message of the widget's own
        state = self._states.setdefault(identity, {})
        state.update(changes)
        for path, buffer in zip(data.get("buffer_paths") or (), message.buffers, strict=False):
            text = base64.b64encode(buffer).decode()
            made = {"data": text, "encoding": "base64", "path": path}
            self._buffers.setdefault(identity, {})[repr(path)] = made
        if state.get("_model_name") == "OutputModel" and "msg_id" in changes:
            for widgets in self._taking.values():
                widgets[:] = [one for one in widgets if one != identity]
            if changes["msg_id"]:
                self._taking.setdefault(str(changes["msg_id"]), []).append(identity)

    def outputs_for(self, message: Message) -> list[Any] | None:
        """Return the outputs of the widget that takes this one; None if it is the cell's."""
        widgets = self._taking.get(message.parent)
        return self._states[widgets[-1]].setdefault("outputs", []) if widgets else None

    def metadata(self) -> dict[str, Any]:
        """Return the metadata of a notebook that has these models; nothing if there are none."""
        models: dict[str, Any] = {}
        for identity, state in self._states.items():
            if "_model_name" in state:
                models[identity] = {name: state.get(of) for name, of in PARTS.items()}
                models[identity]["state"] = state
                if identity in self._buffers:
                    models[identity]["buffers"] = [*self._buffers[identity].values()]
        states = {"state": models, "version_major": 2, "version_minor": 0}
        return {"widgets": {STATES: states}} if models else {}
