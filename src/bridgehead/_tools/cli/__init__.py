"""The command line, ``bridgehead``, which is ``jupyter bridgehead`` as well.

Rule: a face. Arguments in, tables and sentences out; what a command does with a kernel is the
``Bridge``'s. click and rich are an extra: without them there is one sentence and exit code 2.
One noun a file, and only ``group`` knows which commands there are.

Python imports the package, and with it zmq and jupyter_client, before anything here is run: that
is some tenths of a second, in which Ctrl-C is not yet ours to catch.
"""

from __future__ import annotations

import errno
import os
import sys
import warnings
from importlib.util import find_spec

from bridgehead._tools.cli.exit import FAILED, INTERRUPTED, NO_READER, NoReader, not_installed, warn

# What writing to a full or broken device says; ``EDQUOT`` is not everywhere.
NO_ROOM = {errno.ENOSPC, errno.EFBIG, errno.EIO, getattr(errno, "EDQUOT", errno.ENOSPC)}


def main() -> None:
    """The console script; raises ``SystemExit`` with a code of ``ending``'s."""
    try:
        _main()
    except KeyboardInterrupt:  # before click is there, or after it; in between it is an Abort
        raise SystemExit(INTERRUPTED) from None


def _main() -> None:
    for module in ("click", "rich"):
        if find_spec(module) is None:
            not_installed(module)
    import click

    from bridgehead._tools.cli.group import bridgehead

    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a file name or a cell may hold what ASCII hasn't
            stream.reconfigure(errors="replace")
    warnings.showwarning = lambda message, *_, **__: warn(str(message))
    asked_by = os.path.basename(sys.argv[0]).partition(".")[0]  # noqa: PTH119 - a word of argv
    name = "jupyter bridgehead" if asked_by == "jupyter-bridgehead" else "bridgehead"
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
        _to_nobody()
        code = NO_READER
    except OSError as error:  # files that a command writes are told where they are
        why, code = error.strerror or str(error) or type(error).__name__, FAILED
        if error.errno in NO_ROOM and error.filename is None:  # behind standard output
            warn(f"the output can't be written: {why}", "red")
            _to_nobody()
        else:
            warn(why if error.filename is None else f"{error.filename}: {why}", "red")
    raise SystemExit(code if isinstance(code, int) else 0)


def _to_nobody() -> None:
    """What is written while Python ends must not find the closed pipe again."""
    nobody = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nobody, stream.fileno())
