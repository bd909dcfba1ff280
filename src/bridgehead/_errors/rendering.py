"""What IPython and notebooks show of an error: the caller's own lines, and no frame of the library.

Rule: the error itself keeps its whole traceback, for ``%debug`` and for logs. Only this file looks
into IPython.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from bridgehead._errors import FleetError, RemoteError
from bridgehead._errors.safe_text import coloured, harmless

_KERNELS_SHOWN = 8  # errors of a FleetError that IPython shows
_LINES_SHOWN = 40  # of the traceback of one of them
_LIBRARY = __name__.partition(".")[0]
# What the library calls, and what calls it back. Below the caller's own frames they say nothing.
_MACHINERY = {_LIBRARY, "cloudpickle", "asyncio", "concurrent", "contextlib", "threading"}


def _callers_frames(trace: TracebackType | None) -> TracebackType | None:
    """Return a copy of a traceback without the library's frames, and what runs between them."""
    kept: list[TracebackType] = []
    inside = False
    while trace is not None:
        package = str(trace.tb_frame.f_globals.get("__name__")).partition(".")[0]
        inside = inside or package == _LIBRARY
        if not inside or package not in _MACHINERY:
            kept.append(trace)
        trace = trace.tb_next
    for one in reversed(kept):
        trace = TracebackType(trace, one.tb_frame, one.tb_lasti, one.tb_lineno)
    return trace


def _copy(error: BaseException, message: str, above: frozenset[int] = frozenset()) -> Exception:
    """Return an exception that looks like ``error``, without the library's frames.

    ``above`` has the ids of the exceptions that it led to. A cause that was raised in the library
    alone is left out: the message says what it was.
    """
    kind = type(error)
    copy: Any = type(kind.__name__, (Exception,), {"__module__": kind.__module__})(message)
    copy.__traceback__ = _callers_frames(error.__traceback__)
    copy.__notes__ = [harmless(str(note)) for note in getattr(error, "__notes__", ())]
    above |= {id(error)}
    # The kernel's traceback shows the cause of a RemoteError.
    cause = None if isinstance(error, RemoteError) else error.__cause__
    context = None if error.__suppress_context__ else error.__context__
    for other in (cause, context):
        if other is not None and id(other) not in above and _callers_frames(other.__traceback__):
            earlier = _copy(other, _text_of(other), above)
            copy.__cause__, copy.__context__ = earlier if other is cause else None, earlier
            break
    return copy  # type: ignore[no-any-return]


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - the user's own class
        return "<its str() raised>"


def rendered(error: BaseException, message: str) -> list[str] | None:
    """Return the lines with which IPython shows an error: the caller's frames and a message.

    The error itself keeps its whole traceback, for ``%debug`` and for logs. Returns None where
    there is no IPython.
    """
    shell = _ipython_shell()
    if shell is None:
        return None
    copy, renderer = _copy(error, message), shell.InteractiveTB
    records = getattr(renderer, "get_records", None)

    def records_of(trace: TracebackType | None, *options: Any) -> Any:
        """Correct the lines: of a cell, IPython 9 shows the one where the frame is by now.

        After an error in a ``with`` or a ``try`` statement that is the statement's own line.
        """
        found, lines = records(trace, *options), dict(_lines_of(trace))  # type: ignore[misc]
        for record in found:
            if getattr(record, "_sd", record) is None:
                record.lineno = lines.get(record.frame, record.lineno)
        return found

    if records is not None:
        renderer.get_records = records_of
    try:
        shown: list[str] = renderer.structured_traceback(type(copy), copy, copy.__traceback__)
    finally:
        vars(renderer).pop("get_records", None)
    return shown


def _ipython_shell() -> Any:
    """Return the IPython that this program runs in; None if there is none."""
    ipython: Any = sys.modules.get("IPython")
    return None if ipython is None else ipython.get_ipython()


def show_fleet_errors() -> None:
    """Have IPython show a ``FleetError`` as it shows the other errors.

    Of an ``ExceptionGroup``, IPython 9 prints the whole traceback, and does not ask the error for
    its lines. Its only hook is one handler for all classes; that of a user stays.
    """
    shell = _ipython_shell()
    if shell is not None and shell.custom_exceptions == ():
        shell.set_custom_exc((FleetError,), _show_fleet_error)


def _show_fleet_error(
    shell: Any, kind: type[FleetError], error: FleetError, trace: Any, tb_offset: Any = None
) -> None:
    lines = rendered_fleet_error(error)
    # IPython asks this one for its lines, as it is no group.
    shown = type(kind.__name__, (Exception,), {"_render_traceback_": lambda shown: lines})
    shell.showtraceback((shown, shown(error.message), trace), running_compiled_code=True)
    sys.last_type, sys.last_value, sys.last_traceback = kind, error, trace  # for %debug


def _lines_of(trace: TracebackType | None) -> Iterator[tuple[Any, int]]:
    while trace is not None:
        yield trace.tb_frame, trace.tb_lineno
        trace = trace.tb_next


def rendered_fleet_error(error: FleetError) -> list[str]:
    """Return the lines for a ``FleetError``: the caller's frames, and each kernel's error.

    Of many kernels it is the first ones. Of errors with the same traceback it is shown once.
    """
    shown = rendered(error, error.message)
    if shown is None:
        return [f"{type(error).__name__}: {error}"]
    errors: list[tuple[int | None, Exception]] = [*error.errors.items()]
    errors = errors or [(None, one) for one in error.exceptions]
    seen: dict[str, str] = {}  # which kernel's traceback is shown, by the traceback
    for index, one in errors[:_KERNELS_SHOWN]:
        shown += ["", *_lines_of_kernel(index, one, seen)]
    more = len(errors) - _KERNELS_SHOWN
    if more > 0:
        shown += ["", f"... and the errors of {more} more kernels: `error.errors` has all."]
    if error.results:
        known = f"{len(error.results)} other kernel{'s' * (len(error.results) > 1)}"
        shown += ["", f"`error.results` of the FleetError has what {known} returned."]
    return shown


def _lines_of_kernel(index: int | None, error: Exception, seen: dict[str, str]) -> list[str]:
    """Return what to show of the error of one kernel."""
    text = error._summary if isinstance(error, RemoteError) else _text_of(error)  # noqa: SLF001
    notes = [str(note) for note in getattr(error, "__notes__", ())]
    place = "a kernel" if index is None else f"kernel {index}"
    place = next((note for note in notes if note.startswith(f"{place} of ")), place)
    lines = [harmless(f"{place}: {type(error).__name__}: {text}")]
    trace = "\n".join(error.traceback) if isinstance(error, RemoteError) else ""
    if trace in ("", text):
        return lines
    if trace in seen:
        return [*lines, f"in the kernel: as in {seen[trace]}"]
    seen[trace] = harmless(place.partition(" of ")[0])
    kernels = coloured(trace).split("\n")
    if len(kernels) > _LINES_SHOWN:
        dropped = len(kernels) - _LINES_SHOWN
        half = _LINES_SHOWN // 2
        kernels[half:-half] = [f"... {dropped} lines ..."]
    return [*lines, "in the kernel:", *kernels]
