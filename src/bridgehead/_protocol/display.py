"""What of a kernel's outputs is shown.

Rule: the one filter between the outputs of a kernel and a screen or a notebook file. The outputs of
a trusted kernel pass unchanged. Of any other kernel only inert types pass: text that controls no
terminal, and images without scripts. HTML, JavaScript, SVG, Markdown, LaTeX and the types of
widgets may run code where they are shown, so their names are shown in their place.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from bridgehead._errors import harmless
from bridgehead._protocol.formatting import line
from bridgehead._protocol.raising import as_object

PLAIN = "text/plain"
WIDGET = "application/vnd.jupyter.widget-view+json"
NO_TEXT = "[a widget, which can be shown only by its own kernel]"
IMAGES = ("image/png", "image/jpeg", "image/gif", "image/webp")
SIZES = ("width", "height")  # of an image, in its metadata
# An image ends up in an attribute of an HTML element, which any other character could leave.
_BASE64 = re.compile(r"[A-Za-z0-9+/=\s]*")


def shown_text(text: str, trust: str) -> str:
    """Return the text of a stream as it is shown."""
    return text if trust == "pickle" else harmless(text)


def shown(
    data: Mapping[str, Any], metadata: Mapping[str, Any], trust: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the representations of an output that are shown, and their metadata, by MIME type."""
    if trust == "pickle":
        return dict(data), dict(metadata)
    kept: dict[str, Any] = {}
    sizes: dict[str, Any] = {}
    for kind in IMAGES:
        image = data.get(kind)
        if isinstance(image, str) and _BASE64.fullmatch(image):
            kept[kind] = image
            sizes[kind] = _sizes(metadata.get(kind))
    text = _joined(data.get(PLAIN))
    if text is not None:
        kept[PLAIN] = harmless(text)
    others = ", ".join(line(kind, 40) for kind in data if kind not in kept)
    if others:
        why = f"[not shown, because only data of this kernel is trusted: {others}]"
        kept[PLAIN] = f"{kept[PLAIN]}\n{why}" if PLAIN in kept else why
    return kept, {kind: size for kind, size in sizes.items() if size}


def without_widget(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the representations of an output without that of a widget.

    A notebook looks for a widget's model in its own kernel: it would show an error. It shows the
    widget's text instead.
    """
    if WIDGET not in data:
        return dict(data)
    return {PLAIN: NO_TEXT, **{kind: item for kind, item in data.items() if kind != WIDGET}}


def shown_output(output: Mapping[str, Any], trust: str) -> dict[str, Any]:
    """Return an output, in the format of notebook files, as it is shown or written."""
    if trust == "pickle":
        return dict(output)
    kind = str(output.get("output_type"))
    if kind == "stream":
        name = "stderr" if output.get("name") == "stderr" else "stdout"
        text = harmless(_joined(output.get("text")) or "")
        return {"output_type": kind, "name": name, "text": text}
    if kind == "error":
        traceback = output.get("traceback")
        lines = traceback if isinstance(traceback, (list, tuple)) else ()
        texts = {name: harmless(str(output.get(name, ""))) for name in ("ename", "evalue")}
        return {"output_type": kind, **texts, "traceback": [harmless(str(one)) for one in lines]}
    data, metadata = output.get("data"), output.get("metadata")
    kept, sizes = shown(
        data if isinstance(data, Mapping) else {},
        metadata if isinstance(metadata, Mapping) else {},
        trust,
    )
    made: dict[str, Any] = {"output_type": kind, "data": kept, "metadata": sizes}
    if kind == "execute_result":
        count = output.get("execution_count")
        made["execution_count"] = count if type(count) is int else None
    return made


def show_outputs(outputs: Iterable[Mapping[str, Any]], trust: str, otherwise: str) -> None:
    """Show outputs in this IPython, in their order; print ``otherwise`` if there is none."""
    display: Any = importlib.import_module("IPython.display").display  # IPython calls this

    nothing = True
    for output in outputs:
        one, nothing = shown_output(output, trust), False
        kind = one.get("output_type")
        if kind == "stream":
            stream = sys.stderr if one["name"] == "stderr" else sys.stdout
            stream.write(str(one["text"]))
            stream.flush()  # a kernel collects each stream for itself, which loses their order
        elif kind == "error":
            sys.stderr.write("\n".join([*map(str, one.get("traceback") or ()), ""]))
        else:
            data = without_widget(as_object(one.get("data")))
            display(data, metadata=one.get("metadata"), raw=True)
    if nothing:
        sys.stdout.write(f"{otherwise}\n")


def _joined(text: Any) -> str | None:
    """Return a text, which notebook files may split into lines; None if it is none."""
    if isinstance(text, list) and all(isinstance(part, str) for part in text):
        return "".join(text)
    return text if isinstance(text, str) else None


def _sizes(metadata: Any) -> dict[str, int]:
    found = {name: metadata.get(name) for name in SIZES} if isinstance(metadata, Mapping) else {}
    return {name: size for name, size in found.items() if type(size) is int}
