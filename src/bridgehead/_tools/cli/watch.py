"""``watch`` and ``messages``: follow a kernel as it works.

Rule: a live display on a terminal, one line for each value in a pipe, JSON lines for scripts.
Ctrl-C ends the command, and so does the end of the kernel.
"""

from __future__ import annotations

import datetime
import json
import math
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from bridgehead._tools.cli.candidates import names as complete_names
from bridgehead._tools.cli.exit import finish, warn
from bridgehead._tools.cli.formats import jsonable
from bridgehead._tools.cli.options import as_json, target
from bridgehead._tools.cli.target import Target

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from bridgehead import Message

BARS = "▁▂▃▄▅▆▇█"
KEPT = 200  # numbers of a sparkline at most; wider terminals are rare
TEXT = 400  # characters of a message's text at most
COLOURS = {
    "status": "dim",
    "execute_input": "cyan",
    "stream": "",
    "execute_result": "green",
    "display_data": "green",
    "update_display_data": "green",
    "error": "red",
    "clear_output": "dim",
    "comm_open": "magenta",
    "comm_msg": "magenta",
    "comm_close": "magenta",
}

until = click.option(
    "--count",
    "-n",
    metavar="N",
    type=click.IntRange(min=1),
    help="Stop after N values or messages.",
)


# ---------------------------------------------------------------- watch


@click.command()
@click.argument("expression", metavar="EXPR", shell_complete=complete_names)
@until
@target()
@as_json
def watch(target: Target, expression: str, count: int | None, as_json: bool) -> None:
    """Show the value of EXPR, and show it again when a cell has changed it.

    The kernel evaluates EXPR after each cell of any client, and sends the value if it has
    changed. Numbers are drawn as a line of bars. In a pipe, each value is a line. With
    --json, each line is an object with "at" and "value". Ctrl-C ends the command, and so
    does the end of the kernel.
    """
    finish(_watch(target, expression, count, as_json))


async def _watch(target: Target, expression: str, count: int | None, as_json: bool) -> None:
    from bridgehead import BridgeError, RemoteError
    from bridgehead._tools.cli.terminal import console_for

    console = console_for()
    async with target.open() as bridge:
        view = _view(console, expression, as_json)
        with view:
            watch = bridge.watch(expression)
            seen = 0
            while count is None or seen < count:
                try:
                    value = await anext(watch)
                except StopAsyncIteration:
                    break
                except RemoteError as error:
                    if not seen:
                        raise
                    view.failed(f"{error.ename}: {error.evalue}")
                    continue
                except BridgeError as error:
                    if not seen:
                        raise
                    view.failed(str(error))
                    continue
                seen += 1
                view.take(value)
            else:
                return
    warn("the kernel has exited or was restarted")


def _view(console: Console, expression: str, as_json: bool) -> Any:
    if as_json:
        return _Lines(lambda value: json.dumps({"at": _now(), "value": jsonable(value)}))
    if console.is_terminal:
        return _Live(console, expression)
    return _Lines(_line)


def _line(value: Any) -> str:
    from bridgehead._tools.cli.preview import one_line
    from bridgehead._tools.cli.terminal import PIPED

    return one_line(value, PIPED)


def _now() -> str:
    return datetime.datetime.now().astimezone().isoformat(timespec="milliseconds")


class _Lines:
    """Prints one line for each value."""

    def __init__(self, shown: Callable[[Any], str]) -> None:
        self._shown = shown

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *exc_info: object) -> None:
        pass

    def take(self, value: Any) -> None:
        from bridgehead._tools.cli.terminal import write

        write(self._shown(value) + "\n")

    def failed(self, why: str) -> None:
        warn(why)


class _Live:
    """Shows the latest value and its history, always in the same place."""

    def __init__(self, console: Console, expression: str) -> None:
        from rich.live import Live

        self._console, self._expression = console, expression
        self._numbers: deque[float] = deque(maxlen=KEPT)
        self._value, self._why, self._seen, self._at = "", "", 0, ""
        self._live = Live(console=console, auto_refresh=False, get_renderable=self._draw)

    def __enter__(self) -> _Live:
        self._live.__enter__()
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self._live.__exit__(*exc_info)

    def take(self, value: Any) -> None:
        from bridgehead._tools.cli.preview import one_line

        self._seen += 1
        self._at = datetime.datetime.now().strftime("%H:%M:%S")
        self._value, self._why = one_line(value, 10 * self._console.width), ""
        number = as_number(value)
        if number is None:
            self._numbers.clear()
        else:
            self._numbers.append(number)
        self._live.refresh()

    def failed(self, why: str) -> None:
        self._why = why
        self._live.refresh()

    def _draw(self) -> RenderableType:
        from rich.text import Text

        from bridgehead._tools.cli.terminal import plain, shortened

        width = self._console.width
        lines = [Text(shortened(plain(self._expression), width), style="bold")]
        if not self._seen:
            return Text("\n").join([*lines, Text("waiting for the first value", style="dim")])
        lines.append(Text(shortened(self._value, width)))
        if len(self._numbers) > 1:
            bars = sparkline(list(self._numbers)[-width:], self._console.encoding)
            low, high = min(self._numbers), max(self._numbers)
            lines += [Text(bars, style="cyan"), Text(f"{low:.6g} to {high:.6g}", style="dim")]
        lines.append(Text(f"{self._seen:,} so far, the last at {self._at}", style="dim"))
        if self._why:
            lines.append(Text(shortened(plain(self._why), width), style="red"))
        return Text("\n").join(lines)


def as_number(value: Any) -> float | None:
    """Return a value as a float if it is one finite number, else None."""
    if isinstance(value, (bool, str, bytes)):
        return None
    try:
        number = float(value)
    except Exception:  # noqa: BLE001 - a class's own code may raise anything
        return None
    return number if math.isfinite(number) else None


def sparkline(numbers: list[float], encoding: str = "utf-8") -> str:
    """Return a bar for each number; the least number has the lowest bar."""
    bars = BARS if encoding.startswith("utf") else "_.-~=+*#"
    low, high = min(numbers), max(numbers)
    if low == high:
        return bars[3] * len(numbers)
    steps = len(bars) - 1
    return "".join(
        bars[round((number / 2 - low / 2) / (high / 2 - low / 2) * steps)] for number in numbers
    )


# ---------------------------------------------------------------- messages


@click.command()
@until
@target(trust=False)
@as_json
def messages(target: Target, count: int | None, as_json: bool) -> None:
    """Show the messages of a kernel's iopub channel as they come.

    The command shows the messages for all clients, indented under the request that caused
    them. --json prints one message in each line. Ctrl-C ends the command, and so does the
    end of the kernel.
    """
    finish(_messages(target, count, as_json))


async def _messages(target: Target, count: int | None, as_json: bool) -> None:
    from bridgehead._tools.cli.terminal import console_for, write

    console, parent = console_for(), None
    async with target.open() as bridge:
        stream = bridge.messages()
        warn("listening; press Ctrl-C to stop", "dim")
        seen = 0
        async for message in stream:
            if as_json:
                write(json.dumps(_as_json(message), default=repr) + "\n")
            else:
                if message.parent != parent:
                    parent = message.parent
                    _draw_parent(console, message)
                _draw(console, message)
            seen += 1
            if seen == count:
                return
    warn("the kernel has exited")


def _as_json(message: Message) -> dict[str, Any]:
    return {
        "at": _now(),
        "type": message.type,
        "content": message.content,
        "parent": message.parent,
        "parent_type": message.parent_type,
        "id": message.id,
        "metadata": message.metadata,
        "buffers": [len(bytes(buffer)) for buffer in message.buffers],
    }


def _draw_parent(console: Console, message: Message) -> None:
    from rich.text import Text

    from bridgehead._tools.cli.terminal import plain

    kind = message.parent_type or "no request"
    at = datetime.datetime.now().strftime("%H:%M:%S")
    line = Text(plain(kind), style="bold")
    line.append(f"  {plain(_short(message.parent))}  {at}", style="dim")
    console.print(line, soft_wrap=True)


def _short(request: str) -> str:
    """Return the distinctive part of a request id: in jupyter_client's ids, client and number."""
    session, _, number = request.rpartition("_")
    return f"{session[:8]}_{number}" if session else request[:8]


def _draw(console: Console, message: Message) -> None:
    from rich.text import Text

    from bridgehead._tools.cli.terminal import plain, plain_lines, shortened, uncoloured

    style = COLOURS.get(message.type, "blue")
    name = plain(message.type)
    if message.type == "stream":
        name = plain(message.content.get("name", "stream"))
        style = "yellow" if name == "stderr" else ""
    text = plain_lines(uncoloured(message.text)).rstrip("\n")
    lines = shortened(text, TEXT).splitlines() or [""]
    width = max(20, console.width - 18)
    for at, line in enumerate(lines):
        drawn = Text("  ")
        drawn.append(f"{name if not at else '':<15} ", style=style)
        drawn.append(shortened(line, width), style="dim" if style == "dim" else "")
        drawn.rstrip()
        console.print(drawn, soft_wrap=True)
