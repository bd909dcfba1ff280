"""``%bridge`` and ``%%bridge``: bridges by name, in IPython and in notebooks.

Rule: a line's words in, calls of ``SyncBridge`` out; what a user did wrong is one plain line.
How a cell's output is shown is ``cell``'s, what Tab offers ``tab``'s.
"""

from __future__ import annotations

import argparse
import difflib
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ipykernel.connect import get_connection_file
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.magic import Magics, line_cell_magic, magics_class, no_var_expand
from IPython.core.magic_arguments import argument, kwds, magic_arguments
from IPython.display import display
from jupyter_core.paths import jupyter_runtime_dir

from bridgehead._bridge.sync import SyncBridge
from bridgehead._errors import (
    BridgeError,
    KernelDied,
    KernelNotFound,
    RemoteError,
    UntrustedPayload,
)
from bridgehead._kernels.local import connection_files, find
from bridgehead._tools.magics import complete as tab
from bridgehead._tools.magics.cell import run_shown
from bridgehead._tools.magics.parsing import names_in, wanted, words_of

DEFAULT = "main"  # the bridge's name where nobody says another
_GONE = ("dead", "closed")  # states of a bridge that nothing can be asked of any more
_HELP = ("-h", "--help")
_NONE = "no bridge is open; %bridge launch opens one, or attach, or connect"

_on = argument("--on", metavar="NAME", help=f"which bridge; {DEFAULT}, or the only one")
_new = argument("--on", metavar="NAME", default=DEFAULT, help=f"its name; else {DEFAULT}")
_trust = argument(
    "--trust",
    choices=("pickle", "data"),
    help="open anything that the kernel sends, or nothing but data; by default pickle for "
    "kernels of this user on this machine, else data",
)


@magics_class
class BridgeMagics(Magics):
    """The bridges that are open here, and the magics that use them."""

    def __init__(self, shell: InteractiveShell) -> None:
        super().__init__(shell)
        self._ip = shell
        self.bridges: dict[str, SyncBridge] = {}

    @no_var_expand
    @line_cell_magic
    def bridge(self, line: str, cell: str | None = None) -> None:
        """Move live objects between here and other kernels, and run cells over there.

        ::

            %bridge launch [KERNEL]        start a kernel of its own
            %bridge attach [EXISTING]      a running one; what jupyter console --existing takes
            %bridge connect URL            one behind a Jupyter Server
            %bridge push a b               bind objects there, all or none
            %bridge pull x                 bring x here
            %bridge pull df.mean() as m    bring any expression's value here as m
            %bridge names [PATTERN]        what is there
            %bridge info                   what is known of the kernel and of the way to it
            %bridge close                  end what launch started, leave any other kernel
            %bridge                        the bridges that are open

            %%bridge [--push a,b] [--pull c]
            a cell that runs over there; what it prints, shows and raises is seen here

        ``--on NAME`` says which bridge, where there are several: ``%bridge launch --on gpu``
        opens one of that name, ``%%bridge --on gpu`` runs the cell there. ``--help`` behind
        each tells more. A cell's value over there is seen here as ``Out[n]``; ``_`` is what it
        looks like, the value stays until it is pulled. Ctrl-C in such a cell interrupts the
        kernel over there; a second one gives up waiting. Elsewhere it ends the wait here.
        """
        if cell is not None:
            self._run(line, cell)
            return
        word, rest = [*line.split(None, 1), "", ""][:2]
        if not word:
            self._list()
        elif word in _HELP:
            _say(str(inspect.getdoc(type(self).bridge)))
        elif word not in COMMANDS:
            close = difflib.get_close_matches(word, COMMANDS, 1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(COMMANDS)}"
            raise UsageError(f"%bridge has no {word!r}; {hint}")
        else:
            command = getattr(self, word)
            if not _helped(command, rest):
                command(command.parser.parse_args(words_of(rest, whole=word == "pull")))

    # ------------------------------------------------------------ opening and closing

    @magic_arguments("bridge launch")
    @argument("kernel", nargs="?", default="python3", help="a kernelspec's name; else python3")
    @_new
    @_trust
    def launch(self, args: argparse.Namespace) -> None:
        """Start a kernel of its own; it ends with the bridge, at the latest with this process."""
        self._open(args.on, lambda: SyncBridge.launch(args.kernel, trust=args.trust))

    @magic_arguments("bridge attach")
    @argument(
        "existing",
        nargs="?",
        help="a connection file, a part of its name, or a server's address; else the other "
        "kernel that was used last",
    )
    @_new
    @_trust
    def attach(self, args: argparse.Namespace) -> None:
        """Take a running kernel; closing the bridge leaves it running."""
        with _plainly(args.on):
            existing = _another(args.existing)
        self._open(args.on, lambda: SyncBridge.attach(existing, trust=args.trust))

    @magic_arguments("bridge connect")
    @argument("url", nargs="?", help="the server's address; else that of the one running here")
    @argument("--token", help="else the one in the address, or JUPYTER_TOKEN")
    @argument("--kernel-id", metavar="ID", help="of a running kernel; else one is started")
    @argument("--kernel", metavar="KERNEL", help="the kernelspec to start")
    @_new
    @_trust
    def connect(self, args: argparse.Namespace) -> None:
        """Take or start a kernel behind a Jupyter Server or a Kernel Gateway."""
        self._open(
            args.on,
            lambda: SyncBridge.connect(
                args.url,
                args.token,
                kernel_id=args.kernel_id,
                kernel_name=args.kernel,
                trust=args.trust,
            ),
        )

    @magic_arguments("bridge close")
    @argument("names", nargs="*", metavar="NAME", help=f"the bridges; {DEFAULT}, or the only one")
    @argument("--on", metavar="NAME", help="the same")
    @argument("--all", action="store_true", help="all that are open")
    def close(self, args: argparse.Namespace) -> None:
        """Close bridges: a kernel that launch started ends, any other is left running."""
        asked = dict.fromkeys([*args.names, *filter(None, [args.on])])
        names = list(self.bridges) if args.all else [*asked] or [self.chosen(None)]
        for name in names:  # a name that isn't there: none is closed
            self._known(name)
        for name in names:
            with _plainly(name):
                self.bridges.pop(name).close()

    def close_all(self) -> None:
        """Close every bridge."""
        while self.bridges:
            self.bridges.popitem()[1].close()

    # ------------------------------------------------------------ objects

    @magic_arguments("bridge push")
    @argument("names", nargs="*", metavar="NAME", help="names here; they become names there")
    @_on
    def push(self, args: argparse.Namespace) -> None:
        """Bind objects of this namespace to the same names over there: all of them, or none."""
        self._push(self.chosen(args.on), names_in(*args.names))

    @magic_arguments("bridge pull")
    @argument("what", nargs="?", help="x · x y · x as y · df.describe() as d · x as a, f(y) as b")
    @_on
    def pull(self, args: argparse.Namespace) -> None:
        """Bring values here, and bind them: all of them, read at one instant, or none.

        A name keeps its name unless ``as`` gives it another; any other expression needs ``as``.
        Commas or, between names alone, spaces separate several.
        """
        self._pull(self.chosen(args.on), wanted(args.what or ""))

    @magic_arguments("bridge names")
    @argument("pattern", nargs="?", default="*", help="as of a shell: df*; else all")
    @_on
    def names(self, args: argparse.Namespace) -> None:
        """List the names over there, with type, shape or length, and bytes."""
        chosen = self.chosen(args.on)
        with _plainly(chosen):
            found = self.bridges[chosen].names(args.pattern)
        rows = [
            (
                one.name,
                one.type,
                one.extent,
                "" if one.bytes is None else f"{one.bytes:,}",
            )
            for one in found
        ]
        which = "" if args.pattern == "*" else f" like {args.pattern}"
        _table(("name", "type", "size", "bytes"), rows, f"{chosen} has no names{which}")

    @magic_arguments("bridge info")
    @_on
    def info(self, args: argparse.Namespace) -> None:
        """Show what is known of the kernel, and of the way to it."""
        display(self.bridges[self.chosen(args.on)].info)

    # ------------------------------------------------------------ cells

    @magic_arguments("%bridge")
    @kwds(description="Run a cell over there; what it prints, shows and raises is seen here.")
    @argument("--push", metavar="A,B", default="", help="bind these there first, all or none")
    @argument("--pull", metavar="C", default="", help="bring these here then, if it did not fail")
    @_on
    def cell(self, args: argparse.Namespace) -> None:
        """The words behind ``%%bridge``."""

    def _run(self, line: str, code: str) -> None:
        if _helped(self.cell, line):
            return
        args = self.cell.parser.parse_args(words_of(line))
        chosen = self.chosen(args.on)
        pushed, pulled = names_in(args.push), wanted(args.pull) if args.pull else {}
        if pushed:
            self._push(chosen, pushed)
        with _plainly(chosen):
            run_shown(self._ip, self.bridges[chosen], code)
        if pulled:
            self._pull(chosen, pulled)

    # ------------------------------------------------------------ inside

    def _open(self, name: str, make: Callable[[], SyncBridge]) -> None:
        if not name.isidentifier():
            raise UsageError(f"{name!r} is no name for a bridge")
        there = self.bridges.get(name)
        if there is not None and there.state not in _GONE:
            raise UsageError(
                f"{name} is open, to pid {there.info.pid}; close it first (%bridge close {name}), "
                "or open another one: --on NAME"
            )
        if there is not None:
            self.bridges.pop(name).close()
        with _plainly(name):
            self.bridges[name] = make()
        _say(f"{name}: {self.bridges[name].info}")

    def chosen(self, name: str | None) -> str:
        """The bridge that is meant."""
        if name is None:
            name = next(iter(self.bridges)) if len(self.bridges) == 1 else DEFAULT
            if self.bridges and name not in self.bridges:
                raise UsageError(f"which one? --on {' or --on '.join(self.bridges)}")
        return self._known(name)

    def _known(self, name: str) -> str:
        if not self.bridges:
            raise UsageError(_NONE)
        if name not in self.bridges:
            raise UsageError(f"no bridge {name!r} is open; there is {', '.join(self.bridges)}")
        return name

    def _push(self, chosen: str, names: Sequence[str]) -> None:
        if not names:
            raise UsageError("there is nothing to push; say %bridge push NAME …")
        missing = [name for name in names if name not in self._ip.user_ns]
        if missing:
            raise UsageError(f"no {', '.join(missing)} here; nothing was pushed")
        with _plainly(chosen):
            self.bridges[chosen].push({name: self._ip.user_ns[name] for name in names})

    def _pull(self, chosen: str, asked: dict[str, str]) -> None:
        with _plainly(chosen):
            values = self.bridges[chosen].pull(*asked.values())
        self._ip.push(dict(zip(asked, values if len(asked) > 1 else (values,), strict=True)))

    def _list(self) -> None:
        rows = [(name, *_columns(bridge)) for name, bridge in self.bridges.items()]
        _table(("bridge", "state", "kernel", "python", "pid", "way"), rows, _NONE)


COMMANDS = ("launch", "attach", "connect", "push", "pull", "names", "info", "close")
_KINDS = {  # of the words behind a command
    "launch": "kernelspecs",
    "attach": "connection files",
    "push": "here",
    "pull": "there",
    "names": "there",
    "close": "bridges",
}


def load(shell: InteractiveShell) -> None:
    """Register the magics, and what Tab offers for them."""
    magics = BridgeMagics(shell)
    shell.register_magics(magics)
    offers = {
        name: tab.Offer(
            tuple(word for action in command.parser._actions for word in action.option_strings),
            _KINDS.get(name, ""),
        )
        for name in (*COMMANDS, "cell")
        for command in [getattr(magics, name)]
    }
    tab.install(shell, magics.bridges, offers, magics.chosen)


def unload(shell: InteractiveShell) -> None:
    """Close the bridges, and take away what ``load`` brought."""
    tab.remove(shell)
    magics = shell.magics_manager.registry.pop(BridgeMagics.__name__, None)
    for kind in ("line", "cell"):
        shell.magics_manager.magics[kind].pop("bridge", None)
    if isinstance(magics, BridgeMagics):
        magics.close_all()


# ---------------------------------------------------------------- what is told


@contextmanager
def _plainly(name: str) -> Iterator[None]:
    """What goes wrong is told in a line; what the kernel raised, by its own traceback."""
    try:
        yield
    except RemoteError:
        raise
    except KernelDied as error:
        which = "" if name == DEFAULT else f" --on {name}"
        raise UsageError(f"{error}; %bridge launch{which} opens another one") from error
    except UntrustedPayload as error:
        what = error.type or "more than data"
        raise UsageError(
            f"{what} came from {name}, where only data is trusted; nothing of it was opened. "
            "A bridge that is opened with --trust pickle takes it"
        ) from error
    except (BridgeError, TimeoutError, ValueError, TypeError, ImportError, OSError) as error:
        raise UsageError(" ".join(str(error).split()) or type(error).__name__) from error


def _another(existing: str | None) -> str:
    """What is to be attached to; never the kernel that runs this, which can't answer now.

    Raises:
        KernelNotFound: there is none, or it is this one.
    """
    if existing is not None and existing.startswith(("http://", "https://")):
        return existing
    try:
        this = Path(get_connection_file()).resolve()
    except RuntimeError:  # no kernel: a terminal
        return find(existing)
    if existing is not None:
        found = find(existing)
        if Path(found).resolve() == this:
            raise KernelNotFound(f"{this.name} is this kernel itself; its names are here")
        return found
    files = [file for file in connection_files() if file.resolve() != this]
    if not files:
        raise KernelNotFound(f"no other kernel is running: {jupyter_runtime_dir()} has no file")
    return str(max(files, key=lambda file: file.stat().st_atime))  # as jupyter_client chooses


def _columns(bridge: SyncBridge) -> tuple[str, str, str, str, str]:
    info = bridge.info
    python = ".".join(map(str, info.python))
    return bridge.state, info.kernel, python, str(info.pid), f"{info.lane} over {info.transport}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], nothing: str) -> None:
    if not rows:
        _say(nothing)
        return
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    for row in (heads, *rows):
        _say("  ".join(map(str.ljust, row, widths)).rstrip())


def _helped(command: Any, line: str) -> bool:
    """Show what a command takes, if that was asked."""
    words = line.split()
    asked = "--help" in words or words[:1] == ["-h"]  # a -h is also a minus h
    if asked:
        _say(command.parser.format_help().removeprefix("::\n\n  ").rstrip())
    return asked


def _say(text: str) -> None:
    print(text)  # noqa: T201 - a magic's answer
