"""A notebook, run cell by cell over a bridge.

Rule: which cells run, and what is written into the notebook. Each cell is one ``Bridge.run``.
Outputs are kept as nbclient keeps them, except that neighbouring parts of one stream are joined.
Of a kernel that is not trusted they are inert, as everywhere, and no widgets are kept.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from bridgehead._bridge.arguments import checked_objects
from bridgehead._bridge.bridge import Bridge
from bridgehead._bridge.whole_file import check_writable, write_whole
from bridgehead._bridge.widget_models import WidgetModels
from bridgehead._connection.outputs import COMMS, CellObserver
from bridgehead._errors import BridgeError, NotSupported, RemoteError, RunTimeout, harmless
from bridgehead._protocol.display import shown_output
from bridgehead._protocol.raising import as_text
from bridgehead._transports.messages import Message
from bridgehead._transports.tasks import noted_on

Path = str | os.PathLike[str]

# The tags of cells with values of parameters. A notebook that papermill has run has both cells,
# and the first of these binds the values of that run after the second.
PARAMETERS = ("injected-parameters", "parameters")


async def run_notebook(
    bridge: Bridge,
    path: Path,
    *,
    parameters: Mapping[str, Any] | None = None,
    save: Path | None = None,
    timeout: float | None = None,
) -> Any:
    r"""Run the code cells of a notebook in a kernel, in their order, and return the notebook.

    Needs ``pip install 'bridgehead[notebook]'``. Outputs, counts and errors are those of the cells,
    as nbclient writes them, and so is the state of widgets. What is printed inside an ``Output``
    widget is an output of the widget; its ``outputs`` in the kernel stay empty. Of the tags of
    cells, ``skip-execution`` leaves a cell as it is, and after a cell with ``raises-exception``
    that fails the next ones run.

    Args:
        bridge: the bridge of the kernel.
        path: the notebook's file, which is not changed.
        parameters: names to live objects, pushed when the cell with the tag ``parameters`` has run,
            or the one with ``injected-parameters`` that papermill left behind it; before all cells
            if there is none.
        save: where to write the notebook, also if a cell fails; None writes nothing. The file is
            written whole, or an earlier one stays as it was.
        timeout: seconds for each cell. After a timeout, and after a cancel of the run, the cell is
            interrupted where the kernel can do this.

    Returns:
        A ``nbformat.NotebookNode``.

    Raises:
        RemoteError: a cell raised; later ones did not run, and ``notebook`` is the notebook so far.
        RunTimeout: a cell took longer; with ``notebook``, too.
        ImportError: nbformat is not installed.
        TypeError, ValueError, OSError: an argument is wrong, or ``save`` cannot be written; no cell
            ran.
        EncodeError, MissingInKernel: as ``Bridge.push``, of the parameters.

    Example::

        >>> notebook = await bridgehead.run_notebook(bridge, path, parameters={"rows": [1, 2]})
        >>> notebook.cells[0].outputs[0].text
        '3\n'
    """
    if not isinstance(bridge, Bridge):
        raise TypeError(f"run_notebook() takes an open Bridge, not {type(bridge).__name__}")
    parameters = checked_objects(parameters, {}) if parameters else {}
    if save is not None:
        check_writable(pathlib.Path(save))
    try:
        nbformat: Any = importlib.import_module("nbformat")
    except ImportError as error:
        raise ImportError(
            "run_notebook() needs nbformat: pip install 'bridgehead[notebook]'", name="nbformat"
        ) from error
    notebook = nbformat.read(path, as_version=4)
    run, failure = NotebookRun(bridge, notebook, timeout), None
    try:
        await run.all(parameters)
    except BaseException as error:
        failure = error
        if isinstance(error, RemoteError | RunTimeout):
            error.notebook = notebook
        raise
    finally:
        if save is not None:
            with noted_on(failure):
                write_notebook(notebook, save)
    return notebook


def write_notebook(notebook: Any, path: Path) -> None:
    """Write the file of a notebook whole, or leave an earlier file as it is.

    An output may have half of a surrogate pair, which UTF-8 does not take, and JSON does. It is
    always in a text, so the escape of Python is that of JSON.
    """
    nbformat: Any = importlib.import_module("nbformat")
    content = nbformat.writes(notebook).encode("utf-8", "backslashreplace")
    write_whole(pathlib.Path(path), content + b"\n")


class NotebookRun:
    """One run of a notebook.

    Attributes:
        cells: the number of cells that are to run.
        at: the number of the one that runs, or ran last; 0 before the first.
        request, begun: of the cell that runs; see ``CellObserver``.
    """

    def __init__(self, bridge: Bridge, notebook: Any, timeout: float | None) -> None:
        self._bridge, self._notebook = bridge, notebook
        self._options: dict[str, Any] = {"timeout": timeout}
        self._transport = bridge._connection.transport
        with contextlib.suppress(NotSupported):
            bridge._connection.check_interruptible("on_timeout='interrupt'")
            if self._transport.capabilities.signals:
                self._options["on_timeout"] = "interrupt"
        self._code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        self.cells, self.at = sum(map(_runs, self._code)), 0
        self._observer = CellObserver(lambda message: None)
        # By display id: the outputs that a later message updates, in whatever cell.
        self._shown: dict[str, list[Any]] = {}
        self._widgets = WidgetModels()

    async def all(self, parameters: Mapping[str, Any]) -> None:
        """Run the cells, and stop at the first failure."""
        await self._describe()
        marked = next(
            (cell for tag in PARAMETERS for cell in self._code if tag in _tags(cell)), None
        )
        if parameters and marked is None:
            await self._bridge.push(parameters)
        try:
            for cell in self._code:
                if _runs(cell):
                    self.at += 1
                    await self._run(cell)
                if parameters and cell is marked:
                    await self._bridge.push(parameters)
        finally:
            self._notebook.metadata.update(self._widgets.metadata())

    @property
    def place(self) -> str:
        """Which cell runs, or ran last, for messages."""
        return f"cell {self.at} of {self.cells}"

    @property
    def request(self) -> str:
        return self._observer.request

    @property
    def begun(self) -> bool:
        return self._observer.begun

    async def _run(self, cell: Any) -> None:
        outputs = _NotebookCell(cell, self._shown, self._widgets, self._bridge.info.trust)
        cell.outputs = []
        self._observer = CellObserver(outputs)
        try:
            result = await self._bridge.run(cell.source, on_output=self._observer, **self._options)
        except RemoteError as error:
            if error.result is not None:
                cell.execution_count = error.result.execution_count
            if "raises-exception" not in _tags(cell):
                raise
        except RunTimeout as error:
            cell.execution_count = error.result.execution_count
            raise
        else:
            cell.execution_count = result.execution_count

    async def _describe(self) -> None:
        """Write into the notebook what the kernel says of its language."""
        transport, info = self._transport, self._transport.kernel_info
        if transport.capabilities.has_control:
            patience = transport.timings.answers_after_break
            with contextlib.suppress(BridgeError, TimeoutError):
                info = await transport.dispatcher.control("kernel_info_request", {}, patience)
        language = info.get("language_info")
        if not isinstance(language, dict):
            return
        if self._bridge.info.trust == "data":
            language = {
                harmless(str(key)): harmless(value)
                for key, value in language.items()
                if isinstance(value, str)
            }
        self._notebook.metadata["language_info"] = language


class _NotebookCell:
    """Writes the outputs of one cell into the notebook, or into a widget that takes them."""

    def __init__(
        self, cell: Any, shown: dict[str, list[Any]], widgets: WidgetModels, trust: str
    ) -> None:
        self._cell, self._shown, self._widgets, self._trust = cell, shown, widgets, trust
        self._clear: list[list[Any]] = []  # outputs that the next one clears

    def __call__(self, message: Message) -> None:
        if message.type in COMMS:
            if self._trust == "pickle":  # widgets run code where they are shown
                self._widgets.take(message)
            return
        if message.type == "update_display_data":
            self._update(message)
            return
        content, outputs = message.content, self._widgets.outputs_for(message)
        if outputs is None:
            outputs = self._cell.outputs
        if message.type == "clear_output":
            self._clear.append(outputs)
            if content.get("wait"):
                return
        if any(one is outputs for one in self._clear):
            self._clear = [one for one in self._clear if one is not outputs]
            for known in self._shown.values():
                known[:] = [one for one in known if not any(one is other for other in outputs)]
            outputs.clear()
        if message.type == "clear_output":
            return
        output = _node(message, self._trust)
        if output["output_type"] == "stream" and outputs and _is_same_stream(outputs[-1], output):
            outputs[-1]["text"] += output["text"]
            return
        outputs.append(output)
        identity = _display_id(content)
        if identity:
            self._update(message)
            self._shown.setdefault(identity, []).append(output)

    def _update(self, message: Message) -> None:
        """Update the outputs of this display, in whatever cell they are."""
        node = _node(message, self._trust)
        for output in self._shown.get(_display_id(message.content), ()):
            output["data"], output["metadata"] = node["data"], node["metadata"]


def _is_same_stream(last: Any, output: Any) -> bool:
    return bool(last["output_type"] == "stream" and last["name"] == output["name"])


def _display_id(content: Mapping[str, Any]) -> str:
    transient = content.get("transient")
    identity = transient.get("display_id") if isinstance(transient, Mapping) else None
    return identity if isinstance(identity, str) else ""


def _node(message: Message, trust: str) -> Any:
    """Return an output as it is written into a notebook, whatever the kernel sent."""
    kind = "display_data" if message.type == "update_display_data" else message.type
    output = shown_output({**message.content, "output_type": kind}, trust)
    made: dict[str, Any] = {"output_type": kind}
    if kind == "stream":
        made |= {"name": as_text(output.get("name")), "text": as_text(output.get("text"))}
    elif kind == "error":
        traceback = output.get("traceback")
        lines = traceback if isinstance(traceback, (list, tuple)) else ()
        made |= {name: as_text(output.get(name)) for name in ("ename", "evalue")}
        made["traceback"] = [as_text(one) for one in lines]
    else:
        for name in ("data", "metadata"):
            value = output.get(name)
            made[name] = value if isinstance(value, dict) else {}
        if kind == "execute_result":
            count = output.get("execution_count")
            made["execution_count"] = count if type(count) is int else None
    nbformat: Any = importlib.import_module("nbformat")
    return nbformat.from_dict(made)


def _runs(cell: Any) -> bool:
    """Whether a code cell is to run."""
    return bool(cell.source.strip()) and "skip-execution" not in _tags(cell)


def _tags(cell: Any) -> Any:
    tags = cell.metadata.get("tags")
    return tags if isinstance(tags, list) else []
