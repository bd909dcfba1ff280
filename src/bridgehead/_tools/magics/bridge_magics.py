"""The commands of ``%bridge`` and ``%%bridge``, and the bridges that they opened, by name.

Rule: the words of a line become calls of ``SyncBridge``. A user's mistake is reported in one plain
line.
"""

from __future__ import annotations

import argparse
import difflib
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import copy_context
from typing import Any

from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.magic import Magics, line_cell_magic, magics_class, no_var_expand
from IPython.core.magic_arguments import argument, kwds, magic_arguments
from IPython.display import display

from bridgehead._bridge.sync import SyncBridge
from bridgehead._errors import (
    BridgeError,
    KernelDied,
    RemoteError,
    UntrustedPayload,
)
from bridgehead._protocol.spelling import SPELLING
from bridgehead._tools.magics import completer, push_pull
from bridgehead._tools.magics.cell import run_shown
from bridgehead._tools.magics.parsing import joined, names_in, wanted, words_of
from bridgehead._tools.magics.several import check_open, run_in_several
from bridgehead._tools.magics.tables import say, show_table

DEFAULT = "main"  # the name of a bridge without --on
_ENDED = ("dead", "closed")  # states of a bridge that can't be used any more
_HELP = ("-h", "--help")
_NONE = "no bridge is open; use %bridge launch, attach or connect to open one"

_on = argument("--on", metavar="NAME", help=f"which bridge; default: the only one, or {DEFAULT}")
_new = argument(
    "--on", metavar="NAME", default=DEFAULT, help=f"the new bridge's name; default: {DEFAULT}"
)
_trust = argument(
    "--trust",
    choices=("pickle", "data"),
    metavar="{pickle,data}",
    help="pickle accepts any object from the kernel, data only plain data; default: pickle for "
    "your kernels on this machine, else data",
)


@magics_class
class BridgeMagics(Magics):
    """The open bridges of this IPython, and the magics that use them."""

    def __init__(self, shell: InteractiveShell) -> None:
        super().__init__(shell)
        self._ip = shell
        self.bridges: dict[str, SyncBridge] = {}

    @no_var_expand
    @line_cell_magic
    def bridge(self, line: str, cell: str | None = None) -> None:
        """Move live objects between this session and other kernels, and run cells in them.

        ::

            %bridge launch [KERNEL]        start a new kernel
            %bridge attach [EXISTING]      use a running kernel, as jupyter console --existing
            %bridge connect URL            use or start a kernel on a Jupyter Server
            %bridge push a b               bind objects to names in the kernel: all or none
            %bridge pull x                 bring x here
            %bridge pull df.mean() as m    bring the value of an expression here as m
            %bridge names [PATTERN]        list the names in the kernel
            %bridge info                   show the kernel and the connection to it
            %bridge interrupt              interrupt what the kernel runs
            %bridge restart                replace the kernel's process: its names are gone
            %bridge close                  shut down a launched kernel, leave any other running
            %bridge                        list the open bridges

            %%bridge [--push a,b] [--pull c]
            run the cell in the kernel; its output and errors are shown here

            %%bridge --on a,b              run the cell in several kernels at once
            %%bridge --all                 run the cell in the kernels of all open bridges

        Use ``--on NAME`` if several bridges are open: ``%bridge launch --on gpu`` opens a bridge
        of that name, ``%%bridge --on gpu`` runs the cell in its kernel. Each command has
        ``--help``. In several kernels, each line of output begins with the name of its bridge, and
        ``--pull`` binds a dict of the values by bridge.

        The value of a cell is shown here as ``Out[n]``. ``_`` holds only how the value looks: the
        value itself stays in the kernel until you pull it. Ctrl-C in a ``%%bridge`` cell
        interrupts that cell in the kernel, and a second Ctrl-C stops waiting. In a ``%bridge``
        line, and before the cell begins, Ctrl-C stops waiting.
        """
        if cell is not None:
            self._run(line, cell)
            return
        word, rest = [*line.split(None, 1), "", ""][:2]
        if not word:
            self._list()
        elif word in _HELP:
            say(str(inspect.getdoc(type(self).bridge)))
        elif word not in COMMANDS:
            close = difflib.get_close_matches(word, COMMANDS, 1)
            hint = f"did you mean {close[0]}?" if close else f"commands: {', '.join(COMMANDS)}"
            raise UsageError(f"%bridge has no command {word!r}; {hint}")
        else:
            command = getattr(self, word)
            if not _show_help(command, rest):
                command(command.parser.parse_args(words_of(rest, whole=word == "pull")))

    # ------------------------------------------------------------ opening and closing

    @magic_arguments("bridge launch")
    @argument("kernel", nargs="?", default="python3", help="a kernelspec's name; default: python3")
    @_new
    @_trust
    def launch(self, args: argparse.Namespace) -> None:
        """Start a new kernel; it exits with the bridge, at the latest with this process."""
        self._open(args.on, lambda: SyncBridge.launch(args.kernel, trust=args.trust))

    @magic_arguments("bridge attach")
    @argument(
        "existing",
        nargs="?",
        help="a connection file, a part of its name, or a server's address; default: the other "
        "kernel that was used last",
    )
    @_new
    @_trust
    def attach(self, args: argparse.Namespace) -> None:
        """Use a running kernel; closing the bridge leaves it running."""
        self._open(args.on, lambda: SyncBridge.attach(args.existing, trust=args.trust))

    @magic_arguments("bridge connect")
    @argument("url", nargs="?", help="the server's address; default: the server on this machine")
    @argument("--token", help="the server's token; default: that in the address, or JUPYTER_TOKEN")
    @argument("--kernel-id", metavar="ID", help="a running kernel; default: start a new one")
    @argument("--kernel", metavar="KERNEL", help="the kernelspec to start")
    @argument(
        "--start-server",
        action="store_true",
        help="start the server of a JupyterHub if it does not run",
    )
    @argument(
        "--timeout",
        metavar="SECONDS",
        type=float,
        default=60.0,
        help="for all of it, a server's start included; default: 60",
    )
    @_new
    @_trust
    def connect(self, args: argparse.Namespace) -> None:
        """Use or start a kernel on a Jupyter Server or a Kernel Gateway."""
        self._open(
            args.on,
            lambda: SyncBridge.connect(
                args.url,
                args.token,
                kernel_id=args.kernel_id,
                kernel_name=args.kernel,
                start_server=args.start_server,
                trust=args.trust,
                timeout=args.timeout,
            ),
        )

    @magic_arguments("bridge close")
    @argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"the bridges to close; default: the only one, or {DEFAULT}",
    )
    @argument("--on", metavar="NAME", help="one more bridge to close")
    @argument("--all", action="store_true", help="close all open bridges")
    def close(self, args: argparse.Namespace) -> None:
        """Close bridges: a launched kernel exits, any other kernel goes on running."""
        asked = dict.fromkeys([*args.names, *filter(None, [args.on])])
        names = list(self.bridges) if args.all else [*asked] or [self.chosen(None)]
        for name in names:  # if one name is unknown, no bridge is closed
            self._known(name)
        for name in names:
            with _plain_errors(name):
                self.bridges[name].close()
                del self.bridges[name]  # not if it failed: the same command tries again

    def close_all(self) -> None:
        """Close every bridge, whatever fails in closing another one."""
        with ExitStack() as stack:
            while self.bridges:
                stack.callback(self.bridges.popitem()[1].close)

    # ------------------------------------------------------------ objects

    @magic_arguments("bridge push")
    @argument("names", nargs="*", metavar="NAME", help="names of this namespace")
    @_on
    def push(self, args: argparse.Namespace) -> None:
        """Bind objects of this namespace to the same names in the kernel: all of them, or none."""
        chosen, objects = self.chosen(args.on), self._own_objects(names_in(*args.names))
        with _plain_errors(chosen):
            say(f"{chosen}: {push_pull.push(self.bridges[chosen], objects)}")

    @magic_arguments("bridge pull")
    @argument("what", nargs="?", help="x · x y · x as y · df.describe() as d · x as a, f(y) as b")
    @_on
    def pull(self, args: argparse.Namespace) -> None:
        """Bring values from the kernel and bind them here: all of them, or none.

        All values are read at the same time. A name stays the same unless ``as`` gives another
        one. Any other expression needs ``as``. Separate several expressions with commas; names
        alone may also be separated with spaces.
        """
        chosen, asked = self.chosen(args.on), wanted(args.what or "")
        with _plain_errors(chosen):
            values, crossed = push_pull.pull(self.bridges[chosen], asked)
        self._ip.push(values)
        say(f"{chosen}: {crossed}")

    @magic_arguments("bridge names")
    @argument("pattern", nargs="?", default="*", help="a shell pattern, e.g. df*; default: all")
    @_on
    def names(self, args: argparse.Namespace) -> None:
        """Show a table of the names in the kernel: type, shape or length, bytes, and a preview."""
        chosen = self.chosen(args.on)
        with _plain_errors(chosen):
            found = self.bridges[chosen].names(args.pattern, preview=True)
        rows = [
            (
                one.name,
                one.type,
                one.extent,
                "" if one.bytes is None else f"{one.bytes:,}",
                one.preview or "",
            )
            for one in found
        ]
        which = "" if args.pattern == "*" else f" like {args.pattern}"
        heads = ("name", "type", "size", "bytes", "value")
        show_table(heads, rows, f"{chosen} has no names{which}")

    @magic_arguments("bridge info")
    @_on
    def info(self, args: argparse.Namespace) -> None:
        """Show the kernel and the connection to it."""
        display(self.bridges[self.chosen(args.on)].info)

    @magic_arguments("bridge interrupt")
    @_on
    def interrupt(self, args: argparse.Namespace) -> None:
        """Interrupt what the kernel runs for any client; an idle one ignores it."""
        chosen = self.chosen(args.on)
        with _plain_errors(chosen):
            self.bridges[chosen].interrupt()
        say(f"{chosen}: interrupted")

    @magic_arguments("bridge restart")
    @_on
    def restart(self, args: argparse.Namespace) -> None:
        """Replace the kernel's process; all names in it are gone. Only for a launched kernel.

        A kernel that died is started again.
        """
        chosen = self.chosen(args.on)
        with _plain_errors(chosen):
            self.bridges[chosen].restart()
        say(f"{chosen}: restarted; {self.bridges[chosen].info}")

    # ------------------------------------------------------------ cells

    @magic_arguments("%bridge")
    @kwds(description="Run a cell in the kernel; its output and errors are shown here.")
    @argument("--push", metavar="A,B", default="", help="first push these names, all or none")
    @argument("--pull", metavar="C", default="", help="then pull these, unless the cell failed")
    @argument(
        "--on",
        metavar="NAME",
        help=f"which bridge, or several: a,b; default: the only one, or {DEFAULT}",
    )
    @argument("--all", action="store_true", help="run the cell in the kernels of all open bridges")
    def cell(self, args: argparse.Namespace) -> None:
        """Define the options of ``%%bridge``."""

    def _run(self, line: str, code: str) -> None:
        if _show_help(self.cell, line):
            return
        args = self.cell.parser.parse_args(joined(words_of(line)))
        chosen = self._several(args.on, all_of_them=args.all)
        pushed, pulled = names_in(args.push), wanted(args.pull) if args.pull else {}
        bridges = {name: self.bridges[name] for name in chosen}
        if len(chosen) > 1:
            check_open(bridges)
        if pushed:
            objects = self._own_objects(pushed)
            for name in chosen:
                with _plain_errors(name, several=len(chosen) > 1):
                    push_pull.push(bridges[name], objects)
        if len(chosen) > 1:
            with _plain_errors(", ".join(chosen)):
                run_in_several(self._ip, bridges, code)
        else:
            with _plain_errors(chosen[0]):
                run_shown(self._ip, bridges[chosen[0]], code)
        if pulled:
            self._bind_from(chosen, pulled)

    def _several(self, names: str | None, *, all_of_them: bool) -> list[str]:
        """Return the names of the bridges of a cell."""
        if all_of_them and names is not None:
            raise UsageError("--all means all open bridges; leave --on out")
        if all_of_them:
            if not self.bridges:
                raise UsageError(_NONE)
            return list(self.bridges)
        asked = [None] if names is None else names_in(names) or [names]
        return [self.chosen(name, "--all or ") for name in asked]

    def _bind_from(self, chosen: Sequence[str], asked: dict[str, str]) -> None:
        """Pull values and bind them here; those of several kernels as a dict by bridge."""
        found: dict[str, dict[str, Any]] = {}
        for name in chosen:
            with _plain_errors(name, several=len(chosen) > 1):
                found[name], _ = push_pull.pull(self.bridges[name], asked)
        if len(chosen) == 1:
            self._ip.push(found[chosen[0]])
        else:
            self._ip.push({one: {name: found[name][one] for name in chosen} for one in asked})

    # ------------------------------------------------------------ inside

    def _open(self, name: str, make: Callable[[], SyncBridge]) -> None:
        if not name.isidentifier():
            raise UsageError(f"{name!r} is not a valid name for a bridge")
        previous = self.bridges.get(name)
        if previous is not None and previous.state not in _ENDED:
            raise UsageError(
                f"{name} is open, to pid {previous.info.pid}; close it first "
                f"(%bridge close {name}), or use another name (--on NAME)"
            )
        with _plain_errors(name):
            if previous is not None:
                self.bridges.pop(name).close()
            # In a context of its own: the notebook's own calls get Python in their messages.
            self.bridges[name] = copy_context().run(_open_with_options, make)
        say(f"{name}: {self.bridges[name].info}")

    def chosen(self, name: str | None, also: str = "") -> str:
        """Return the bridge's name: the given one, the only one, or the default.

        ``also`` is what the error says of other options.

        Raises:
            UsageError: no bridge has that name, or several are open and none was chosen.
        """
        if name is None:
            name = next(iter(self.bridges)) if len(self.bridges) == 1 else DEFAULT
            if self.bridges and name not in self.bridges:
                raise UsageError(
                    f"several bridges are open; use {also}--on {' or --on '.join(self.bridges)}"
                )
        return self._known(name)

    def _known(self, name: str) -> str:
        if not self.bridges:
            raise UsageError(_NONE)
        if name not in self.bridges:
            raise UsageError(f"no bridge {name!r} is open; open: {', '.join(self.bridges)}")
        return name

    def _own_objects(self, names: Sequence[str]) -> dict[str, Any]:
        """Return objects of this namespace by their names."""
        if not names:
            raise UsageError("%bridge push needs at least one name, e.g. %bridge push x")
        missing = [repr(name) for name in names if name not in self._ip.user_ns]
        if missing:
            verb = "is" if len(missing) == 1 else "are"
            raise UsageError(f"{', '.join(missing)} {verb} not defined here; nothing was pushed")
        return {name: self._ip.user_ns[name] for name in names}

    def _list(self) -> None:
        rows = [(name, *_columns(bridge)) for name, bridge in self.bridges.items()]
        show_table(("bridge", "state", "kernel", "python", "pid", "lane"), rows, _NONE)


COMMANDS = (
    *("launch", "attach", "connect", "push", "pull", "names", "info", "interrupt", "restart"),
    "close",
)
# How messages about a bridge that does not open write the arguments that they advise.
AS_OPTIONS = {
    "token=": "--token",
    "timeout=": "--timeout",
    "connect()": "%bridge connect URL",
    "start_server=": "--start-server",
    "start_server=True": "--start-server",
}
_KINDS = {  # what the words of a command name
    "launch": "kernelspecs",
    "attach": "connection files",
    "push": "own names",
    "pull": "kernel's names",
    "names": "kernel's names",
    "close": "bridges",
}


def load(shell: InteractiveShell) -> None:
    """Register the magics and their completion."""
    magics = BridgeMagics(shell)
    shell.register_magics(magics)
    offers = {
        name: completer.Offer(
            tuple(word for action in command.parser._actions for word in action.option_strings),
            _KINDS.get(name, ""),
        )
        for name in (*COMMANDS, "cell")
        for command in [getattr(magics, name)]
    }
    completer.install(shell, magics.bridges, offers, magics.chosen)


def unload(shell: InteractiveShell) -> None:
    """Close the bridges, and remove the magics and their completion."""
    completer.remove(shell)
    magics = shell.magics_manager.registry.pop(BridgeMagics.__name__, None)
    for kind in ("line", "cell"):
        shell.magics_manager.magics[kind].pop("bridge", None)
    if isinstance(magics, BridgeMagics):
        magics.close_all()


# ---------------------------------------------------------------- messages and tables


@contextmanager
def _plain_errors(name: str, *, several: bool = False) -> Iterator[None]:
    """Turn errors into one line each; an exception in the kernel keeps its own traceback.

    Of ``several`` bridges, each error begins with the name of its bridge.
    """
    label = f"{name}: " if several else ""
    try:
        yield
    except RemoteError as error:
        error._of_magic = [f"{name} | failed"] if several else []
        raise
    except KernelDied as error:
        which = "" if name == DEFAULT else f" --on {name}"
        raise UsageError(f"{label}{error}; %bridge launch{which} starts a new kernel") from error
    except UntrustedPayload as error:
        what = error.type or "an object"
        raise UsageError(
            f"{name} sent {what}, but only data is trusted; nothing was opened. "
            "To accept it, open the bridge with --trust pickle"
        ) from error
    except (BridgeError, TimeoutError, ValueError, TypeError, ImportError, OSError) as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"{label}{text}") from error


def _open_with_options(make: Callable[[], SyncBridge]) -> SyncBridge:
    SPELLING.set(AS_OPTIONS)
    return make()


def _columns(bridge: SyncBridge) -> tuple[str, str, str, str, str]:
    info = bridge.info
    python = ".".join(map(str, info.python))
    return bridge.state, info.kernel, python, str(info.pid), f"{info.lane} over {info.transport}"


def _show_help(command: Any, line: str) -> bool:
    """Show a command's help if the line asks for it, and return whether it does."""
    words = line.split()
    asked = "--help" in words or words[:1] == ["-h"]  # elsewhere, "a -h" means a minus h
    if asked:
        say(command.parser.format_help().removeprefix("::\n\n  ").rstrip())
    return asked
