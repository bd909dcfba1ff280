"""The text of widgets whose models live in another kernel.

Rule: a front end shows a widget only for its own kernel, so its text is shown. The text of what
reports progress follows the messages of its models; any other widget keeps its ``text/plain``. Only
the widgets of a trusted kernel are followed.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping
from typing import Any

from bridgehead._protocol.display import WIDGET
from bridgehead._protocol.raising import as_object
from bridgehead._transports.messages import Message

BAR = 10  # characters
DEEPEST = 5  # boxes in boxes
_BOXES = {"HBoxModel": "", "BoxModel": "", "VBoxModel": "\n"}  # what is between their children
_TEXTS = ("HTMLModel", "LabelModel")
_BARS = ("FloatProgressModel", "IntProgressModel")
_TAG = re.compile(r"<[^<>]*>")
_WIDE = str.maketrans("\u2007\u200b", " \0")  # the spaces of tqdm


class WidgetTexts:
    """The widgets that one cell has shown."""

    def __init__(self) -> None:
        self._models: dict[str, dict[str, Any]] = {}  # their state, by id
        self._shown: dict[str, str] = {}  # the text shown last, by the id of the model

    def take(self, message: Message) -> None:
        """Note what a message says of a model: ``comm_open`` or ``comm_msg``."""
        model, data = message.content.get("comm_id"), as_object(message.content.get("data"))
        if message.trust != "pickle" or not isinstance(model, str):
            return
        if message.type == "comm_open":
            self._models[model] = {}
        if model in self._models:
            self._models[model].update(as_object(data.get("state")))

    def display_id(self, data: Mapping[str, Any]) -> str:
        """Return the id of the display of a widget whose text is followed; else an empty text."""
        model = as_object(data.get(WIDGET)).get("model_id")
        text = self._text(model) if isinstance(model, str) else None
        if text is None or not isinstance(model, str):
            return ""
        self._shown[model] = text
        return f"bridgehead-{model}"

    def changes(self) -> Iterator[tuple[str, str]]:
        """Give the ids of the displays whose text has changed, with the text."""
        for model, shown in self._shown.items():
            text = self._text(model)
            if text not in (None, shown):
                self._shown[model] = text
                yield f"bridgehead-{model}", text

    def _text(self, model: str, depth: int = 0) -> str | None:
        """Return the text of a widget; None if it is more than text and bars."""
        state = self._models.get(model, {})
        kind, value = state.get("_model_name"), state.get("value")
        if kind in _TEXTS and isinstance(value, str):
            return html.unescape(_TAG.sub("", value)).translate(_WIDE).replace("\0", "")
        if kind in _BARS:
            return _bar(value, state.get("min"), state.get("max"))
        children = state.get("children")
        if kind not in _BOXES or not isinstance(children, list) or depth == DEEPEST:
            return None
        texts = [self._text(str(child).removeprefix("IPY_MODEL_"), depth + 1) for child in children]
        known = [text for text in texts if text is not None]
        return _BOXES[kind].join(known) if len(known) == len(texts) else None


def _bar(value: Any, least: Any, most: Any) -> str | None:
    numbers = (value, least, most)
    if not all(isinstance(one, (int, float)) for one in numbers) or not most > least:
        return None
    full = round(BAR * min(1.0, max(0.0, (value - least) / (most - least))))
    return f"|{'█' * full}{' ' * (BAR - full)}|"
