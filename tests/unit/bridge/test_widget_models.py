"""The models of widgets: their state, their buffers, and the outputs that they take."""

from __future__ import annotations

from typing import Any

import pytest

from bridgehead import Message
from bridgehead._bridge.notebook import _NotebookCell
from bridgehead._bridge.widget_models import STATES, WidgetModels


def said(kind: str, identity: str, buffers: tuple[bytes, ...] = (), **data: Any) -> Message:
    return Message(kind, {"comm_id": identity, "data": data}, parent="cell", buffers=buffers)


OUTPUT = {"_model_name": "OutputModel", "msg_id": "", "outputs": []}


def test_states_are_merged_and_buffers_keep_their_places() -> None:
    models = WidgetModels()
    assert models.metadata() == {}
    state = {"_model_name": "ImageModel", "_model_module": "m", "width": 1}
    models.take(said("comm_open", "a", (b"1",), state=state, buffer_paths=[["value"]]))
    models.take(said("comm_msg", "a", (b"22",), state={"width": 2}, buffer_paths=[["value"]]))
    models.take(said("comm_msg", "a", method="custom", content={"event": "click"}))
    models.take(Message("comm_msg", {"comm_id": "b"}))
    models.take(said("comm_open", "c", state={"of": "no widget"}))
    (model,) = models.metadata()["widgets"][STATES]["state"].values()
    assert model == {
        "model_name": "ImageModel",
        "model_module": "m",
        "model_module_version": None,
        "state": {**state, "width": 2},
        "buffers": [{"data": "MjI=", "encoding": "base64", "path": ["value"]}],
    }


def test_the_innermost_widget_takes_the_outputs_of_its_cell() -> None:
    models = WidgetModels()
    printed = Message("stream", {"name": "stdout", "text": ""}, parent="cell")
    for name in "ab":
        models.take(said("comm_open", name, state={**OUTPUT, "outputs": [name]}))
    assert models.outputs_for(printed) is None
    models.take(said("comm_msg", "a", state={"msg_id": "cell"}))
    models.take(said("comm_msg", "b", state={"msg_id": "cell"}))
    assert models.outputs_for(printed) == ["b"]
    assert models.outputs_for(Message("stream", {}, parent="other")) is None
    models.take(said("comm_msg", "b", state={"msg_id": ""}))
    assert models.outputs_for(printed) == ["a"]
    models.take(said("comm_msg", "a", state={"msg_id": ""}))
    assert models.outputs_for(printed) is None


@pytest.mark.parametrize(("trust", "kept"), [("pickle", 1), ("data", 0)])
def test_no_widget_of_an_untrusted_kernel_is_kept(trust: str, kept: int) -> None:
    import nbformat

    models = WidgetModels()
    take = _NotebookCell(nbformat.v4.new_code_cell(), {}, models, trust)
    take(said("comm_open", "a", state=OUTPUT))
    assert len(models.metadata()) == kept
