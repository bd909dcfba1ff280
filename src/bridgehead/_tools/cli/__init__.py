"""The command line: ``bridgehead``, or ``jupyter bridgehead``.

Rule: a thin layer. It turns arguments into calls of a ``Bridge``, and results into tables and
sentences. click and rich are an optional extra: without them it prints one sentence and exits
with code 2.

- ``group``: the group of all commands, which alone lists them.
- ``options``: the options that choose a kernel; ``target`` opens a bridge to what they choose.
- ``lifecycle``: ``start``, ``stop``, ``restart``, ``interrupt``.
- ``objects``: ``names``, ``push``, ``pull``. ``formats`` reads and writes files that hold an
  object; ``csv_table`` and ``arrow_table`` do it for tables. ``preview`` shows a value.
- ``handoff``, ``ls``, ``bench``, ``demo``, ``doctor``, ``completion``: the commands of these names.
- ``run``: a cell; ``notebook``: the cells of a file. ``cell_output`` shows what a cell prints,
  ``ctrl_c`` interrupts it.
- ``watch``: ``watch`` and ``messages``.
- ``candidates``: what the shell offers for the word that is typed.
- ``terminal``: output to a terminal or to a pipe.
- ``exit``: how a command ends: its exit code, and one sentence that says why.

Python imports the package, and with it zmq and jupyter_client, before any code of this folder
runs. That takes some tenths of a second, in which this code cannot catch Ctrl-C.
"""

from __future__ import annotations

import errno
import os
import sys
import warnings
from contextvars import copy_context
from importlib.util import find_spec

from bridgehead._tools.cli.exit import FAILED, INTERRUPTED, NO_READER, NoReader, not_installed, warn

# The errors of writing to a full or broken device; some systems have no ``EDQUOT``.
NO_ROOM = {errno.ENOSPC, errno.EFBIG, errno.EIO, getattr(errno, "EDQUOT", errno.ENOSPC)}


def main() -> None:
    """Run the console script; raises ``SystemExit`` with one of the exit codes of ``exit``."""
    try:
        copy_context().run(_main)  # a program that calls this keeps its own words in messages
    except KeyboardInterrupt:  # before or after click runs; click itself turns it into an Abort
        raise SystemExit(INTERRUPTED) from None


def _main() -> None:
    for module in ("click", "rich"):
        if find_spec(module) is None:
            not_installed(module)
    import click

    from bridgehead._protocol.spelling import SPELLING
    from bridgehead._tools.cli.group import bridgehead
    from bridgehead._tools.cli.options import AS_OPTIONS

    SPELLING.set(AS_OPTIONS)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a file name or a cell may have non-ASCII characters
            stream.reconfigure(errors="replace")
    warnings.showwarning = lambda message, *_, **__: warn(str(message))
    script = os.path.basename(sys.argv[0]).partition(".")[0]  # noqa: PTH119 - a word of argv
    name = "jupyter bridgehead" if script == "jupyter-bridgehead" else "bridgehead"
    try:
        code = bridgehead.main(
            prog_name=name, complete_var="_BRIDGEHEAD_COMPLETE", standalone_mode=False
        )
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except click.Abort:
        code = INTERRUPTED
    except (NoReader, BrokenPipeError):
        _discard_output()
        code = NO_READER
    except OSError as error:  # a command reports the errors of its own files itself
        why, code = error.strerror or str(error) or type(error).__name__, FAILED
        if error.errno in NO_ROOM and error.filename is None:  # standard output is a full device
            warn(f"the output can't be written: {why}", "red")
            _discard_output()
        else:
            warn(why if error.filename is None else f"{error.filename}: {why}", "red")
    raise SystemExit(code if isinstance(code, int) else 0)


def _discard_output() -> None:
    """Send both streams to the null device: at exit Python flushes them once more."""
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(null, stream.fileno())
