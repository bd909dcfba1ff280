"""The exceptions, in one tree, and how they are shown.

Rule: the base class says whether the request ran; the class says why; the message says what went
wrong, what state things are in now, and what to do. Every class pickles. The tree::

    BridgeError
      NotSent               the request was refused before it was sent
        KernelNotFound      there is no such kernel, or nothing answers at its address
        UnsupportedKernel   not a Python kernel, or without user_expressions
        EncodeError         the object cannot be pickled; it names the part
        IncompatiblePython  code objects cannot cross between Python minor versions
        PayloadTooLarge     the object has more bytes than max_bytes allows
        InsecureConnection  others could read or forge the messages of the connection
      NotExecuted           the request was refused, and the kernel is unchanged
        RequestAborted      another client's failing cell aborted it, each time
        IntegrityError      what arrived in the kernel is not what was sent
        NotSupported        this kernel or this connection cannot do it
        MissingInKernel     the kernel lacks a package that the object needs
        NameNotFound        the name is not defined in the kernel (also a KeyError)
      RemoteError           the request ran in the kernel and raised an exception
      OutcomeUnknown        the request may have run as a whole, or not at all
        KernelDied          the kernel's process has ended
        KernelRestarted     a new process answers; its namespace is new
        KernelUnresponsive  the process shows no sign of life; it may recover
        ReplyLost           its reply is lost or damaged; the message says what is known
        TransportError      the connection itself failed
      DecodeError           the value arrived, but cannot be unpickled in this process
      UntrustedPayload      the value is more than data, and was not opened
      ProtocolError         the kernel's response does not follow the protocol
      BridgeClosed          the bridge was closed, before the call or meanwhile

A deadline that passed is the builtin ``TimeoutError``, or its subclass ``RunTimeout`` for a cell;
a wrong argument is a ``ValueError`` or a ``TypeError``, raised before anything is sent. If this
process has no memory for an object, that is an ``EncodeError`` or a ``DecodeError``; if it has none
for anything else, that is the builtin ``MemoryError``, with a note that says whether the request
was sent.
``FleetError`` is an ``ExceptionGroup`` of the errors of several kernels.
``InsecureConnectionWarning`` is a warning: the connection is made all the same.

What shows them is here, too, below all floors. ``harmless`` and ``coloured`` take out of a text
what controls a terminal; the command line and what shows a kernel's outputs use them, too. In
IPython an error is shown without the library's frames.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

# The texts of a ``BridgeClosed``.
CLOSED = "this bridge was closed"  # before the request was sent
CLOSED_MEANWHILE = "this bridge was closed while the request was on its way, which may have run"
# The texts of a ``KernelRestarted``.
RESTARTED = (  # before the request was sent, or refused by the new process
    "the kernel was restarted, and its namespace is new; this call was not executed: create its "
    "names again, then call again"
)
RESTARTED_MEANWHILE = (
    "the kernel was restarted, and its namespace is new; a request that was on its way may have "
    "run in the old process"
)
# Patterns are compiled when they are first used: all of them took 3 ms of each import.
# Group 1 is a colour or a weight. Any other sequence could move the cursor, or do worse.
SEQUENCE = r"(\x1b\[[0-9;]*m)|\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b."
# All but tab and line feed, and what reverses the direction of text.
_CONTROL = "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"


def harmless(text: str) -> str:
    """Return a text without anything that controls a terminal, colours included.

    Lines stay; a carriage return, which would overwrite the line, begins a new one.
    """
    if text.isprintable():
        return text
    lines = re.sub(SEQUENCE, "", text).replace("\r\n", "\n").replace("\r", "\n")
    return re.sub(_CONTROL, "\N{REPLACEMENT CHARACTER}", lines)


def coloured(text: str) -> str:
    """Return a text as ``harmless`` does, with its colours."""
    parts = re.split(SEQUENCE, text)  # a colour, or None for another sequence, is every second part
    return "".join((part or "") if at % 2 else harmless(part) for at, part in enumerate(parts))


# ---------------------------------------------------------------- in IPython and notebooks

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


def _render(error: BaseException, message: str) -> list[str] | None:
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
    lines = error._render_traceback_()
    # IPython asks this one for its lines, as it is no group.
    shown = type(kind.__name__, (Exception,), {"_render_traceback_": lambda shown: lines})
    shell.showtraceback((shown, shown(error.message), trace), running_compiled_code=True)
    sys.last_type, sys.last_value, sys.last_traceback = kind, error, trace  # for %debug


def _lines_of(trace: TracebackType | None) -> Iterator[tuple[Any, int]]:
    while trace is not None:
        yield trace.tb_frame, trace.tb_lineno
        trace = trace.tb_next


class BridgeError(Exception):
    """The base class of all errors that bridgehead defines.

    A message may quote a kernel or a server; as text it has nothing that controls a terminal.

    >>> try:
    ...     await bridge.pull("nothing")
    ... except BridgeError as error:
    ...     print(type(error).__name__)
    NameNotFound
    """

    # Of a cell that ran, its ``Result``: of ``RemoteError``, and of whatever keeps ``run`` from
    # returning the values of ``pull=``.
    result: Any = None

    def __str__(self) -> str:
        # Not super(): KeyError would show the repr of its argument, and a message is a sentence.
        return harmless(Exception.__str__(self))

    def _render_traceback_(self) -> list[str]:
        """Return what IPython shows: the caller's frames without the library's, and the message."""
        return _render(self, str(self)) or [f"{type(self).__name__}: {self}"]


class NotSent(BridgeError):
    """The request was refused before it was sent; nothing ran in the kernel.

    There is one exception: if the value of a pull is ``PayloadTooLarge``, its expression was
    evaluated.
    """


class KernelNotFound(NotSent):
    """There is no such kernel, or no kernel answers at its address.

    ``bridgehead ls`` lists the kernels that run, ``jupyter kernelspec list`` those to launch.
    """


class UnsupportedKernel(NotSent):
    """The kernel is not a Python kernel that evaluates ``user_expressions``; use another one."""


class EncodeError(NotSent):
    """A value cannot be pickled.

    Leave the part out that is named, or create it in the kernel with ``run``.

    Attributes:
        path: the part that cannot be pickled, as an expression, e.g. ``"config['lock']"``.

    >>> await bridge.push(config={"source": (n for n in range(3))})
    Traceback (most recent call last):
    EncodeError: config['source'] cannot be pickled: TypeError: cannot pickle 'generator' object
    """

    def __init__(self, message: str, *, path: str = "") -> None:
        super().__init__(message)
        self.path = path


class IncompatiblePython(NotSent):
    """Code objects would cross between two Python minor versions, and could crash the receiver.

    Push only data, and define the functions in a cell; or run the same Python version at both ends.
    """


class PayloadTooLarge(NotSent):
    """The object has more bytes than ``max_bytes`` allows; none of them were sent.

    A push has bound nothing. The expression of a pull was evaluated, with its side effects.

    Attributes:
        bytes: the size of the object in bytes; None if not known.

    >>> await bridge.pull("bytes(1000)", max_bytes=100)
    Traceback (most recent call last):
    PayloadTooLarge: payload is 1,020 bytes, more than max_bytes=100; nothing was sent
    """

    def __init__(self, message: str, *, bytes: int | None = None) -> None:  # noqa: A002
        super().__init__(message)
        self.bytes = bytes


class InsecureConnection(NotSent):
    """Others could read or forge the messages of this connection.

    Give the kernel a key, and use Unix sockets, CURVE or ports that SSH forwards; or allow this
    connection with ``insecure=``.
    """


class InsecureConnectionWarning(UserWarning):
    """Other users of this machine can read the connection file, and so control the kernel.

    Protect the file with ``chmod 600``.
    """


class NotExecuted(BridgeError):
    """The request was refused or dropped; the kernel is unchanged."""


class RequestAborted(NotExecuted):
    """Another client's failing cell aborted the request, or the remote part was removed.

    Every attempt failed this way; call again.
    """


class IntegrityError(NotExecuted):
    """Frames were lost, added, reordered or altered in transit, or changed while being sent.

    Call again, and do not change an object before ``push`` returns.
    """


class NotSupported(NotExecuted):
    """The kernel, or the kind of connection to it, does not support the operation.

    The kernel refused it, or the bridge knew that it would and sent nothing.

    >>> await bridge.interrupt()
    Traceback (most recent call last):
    NotSupported: a loopback has no process to interrupt
    """


class MissingInKernel(NotExecuted):
    """The kernel's environment lacks a package; the kernel's namespace is unchanged.

    Install it there; send a module of your own along with ``by_value=``.

    Attributes:
        module: the module that the kernel could not import.
    """

    def __init__(self, message: str, *, module: str = "") -> None:
        super().__init__(message)
        self.module = module


class NameNotFound(NotExecuted, KeyError):
    """A name is not defined in the kernel.

    ``names()`` lists those that are; a kernel that was restarted has none.

    Attributes:
        names: the names that are missing.

    >>> await bridge.pull("nothing")
    Traceback (most recent call last):
    NameNotFound: 'nothing' is not defined in the kernel
    """

    def __init__(self, message: str, *, names: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.names: tuple[str, ...] = tuple(names)


class RemoteError(BridgeError):
    """The request ran in the kernel and raised an exception.

    ``__cause__`` is the original exception if it could be rebuilt in this process.

    Attributes:
        ename: the exception's type name.
        evalue: its message.
        traceback: the kernel's own traceback, one string a line, possibly with ANSI colours.
        result: of a cell, the ``Result`` with its output before the exception; else None.
        notebook: of ``run_notebook``, the notebook so far; else None.

    >>> try:
    ...     await bridge.run("print('begun'); 1 / 0")
    ... except RemoteError as error:
    ...     print(error.ename, error.result.stdout)
    ZeroDivisionError begun
    """

    notebook: Any = None
    _of_magic: Sequence[str] | None = None  # lines before it: a magic, and no line of code, called
    _is_printed = False  # the outputs of the cell have the traceback: that of an exception group
    _is_cause = False  # of the original exception, which is raised in its place

    def __init__(self, ename: str, evalue: str, traceback: Sequence[str] = ()) -> None:
        super().__init__(ename, evalue, tuple(traceback))
        self.ename: str = ename
        self.evalue: str = evalue
        self.traceback: list[str] = list(traceback)

    def __str__(self) -> str:
        if not self.traceback:
            return harmless(self._summary)
        advice = [] if self._is_cause else ["", self._advice]
        lines = ["", "in the kernel:", *self.traceback, *advice]
        return harmless("\n".join([self._summary, *lines]))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {harmless(f'{self.ename}: {self.evalue}')}>"

    @property
    def _summary(self) -> str:
        return f"{self.ename}: {self.evalue}" if self.evalue else self.ename

    @property
    def _lines_below_outputs(self) -> list[str]:
        """What to show of the error below the outputs of its cell."""
        return self.traceback if self.traceback and not self._is_printed else [self._summary]

    @property
    def _advice(self) -> str:
        """How to catch the exception, which its own class in an ``except`` does not do."""
        if self.__cause__ is None:
            return "To catch it, use `except RemoteError as error` and look at `error.ename`."
        kind = type(self.__cause__).__name__
        is_group = isinstance(self.__cause__, BaseExceptionGroup)
        also = ", and `except*` takes none of its exceptions" if is_group else ""
        return (
            f"`except {kind}` does not catch this{also}. Use `except RemoteError as error`:\n"
            f"`error.__cause__` is the {kind}."
        )

    def _render_traceback_(self) -> list[str]:
        """Return what IPython shows: the caller's frames, the message, the kernel's traceback.

        The kernel's traceback keeps its colours, and no other control sequences. For a
        ``%%bridge`` cell, only that traceback is returned.
        """
        if self._of_magic is not None:
            return [*self._of_magic, *map(coloured, self._lines_below_outputs)]
        kernels = [coloured(line) for line in self.traceback]
        callers = _render(self, harmless(self._summary))
        if callers is None or not kernels:
            return callers or kernels or [str(self)]
        return [*callers, "", "in the kernel:", *kernels, "", harmless(self._advice)]


class RunTimeout(TimeoutError):
    """A cell did not end within its ``timeout``.

    It goes on in the kernel, unless ``on_timeout="interrupt"``.

    Attributes:
        result: the ``Result`` with its outputs so far. With ``max_output=``, a cell that still runs
            has sent the first half of so many characters at most, and nothing is in ``dropped``.
        notebook: of ``run_notebook``, the notebook so far; else None.

    >>> try:
    ...     await bridge.run("print('begun'); import time; time.sleep(0.5)", timeout=0.2)
    ... except RunTimeout as error:
    ...     print(error.result.stdout)
    begun
    """

    notebook: Any = None

    def __init__(self, message: str, *, result: Any = None) -> None:
        super().__init__(message)
        self.result = result

    def _render_traceback_(self) -> list[str]:
        return _render(self, str(self)) or [f"{type(self).__name__}: {self}"]


class OutcomeUnknown(BridgeError):
    """It is not known whether the request ran; if it did, it ran as a whole.

    Check what it would have changed before you send it again.
    """


class KernelDied(OutcomeUnknown):
    """The kernel's process has ended, and its namespace is lost.

    SIGKILL often means that memory ran out. ``restart()`` starts a launched kernel again, empty.

    Attributes:
        exit_code: the process's exit code, negative for a signal; None if not known.
    """

    def __init__(self, message: str, *, exit_code: int | None = None) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class KernelRestarted(OutcomeUnknown):
    """The kernel was restarted, and its namespace is new. The next call goes to the new kernel.

    If the message does not say that the call was not executed, it may have run in the old process.
    """


class KernelUnresponsive(OutcomeUnknown):
    """The kernel's process is stopped or starved, or the connection to it is broken.

    The request may still run if the kernel continues. The bridge goes on when it answers again.
    """


class ReplyLost(OutcomeUnknown):
    """The reply never arrived, or arrived damaged; the request may have run.

    The message says what is known. Check what the request changed before you send it again.
    """


class TransportError(OutcomeUnknown):
    """The connection failed while the request was in transit.

    The next call connects again, if that is possible.
    """

    may_recover = False  # whether a later attempt may succeed; for the transports


class DecodeError(BridgeError):
    """A value arrived, but cannot be unpickled in this process, or has no room in its memory.

    Install here what the message names, or pull a plain value, e.g. ``df.to_dict()``.
    """


class BridgeClosed(BridgeError):
    """The bridge was closed, before the call or meanwhile; open another one.

    If the message does not say that the request was on its way, it was not sent.

    >>> await bridge.aclose()
    >>> await bridge.pull("x")
    Traceback (most recent call last):
    BridgeClosed: this bridge was closed
    """


class UntrustedPayload(BridgeError):
    """A value is more than data, and only data is trusted; it was not opened, no code ran.

    So is data that is nested too deeply to be opened.

    ``allow=[Class]`` opens a class of yours, and ``trust="pickle"`` everything: for a kernel whose
    code may run in this process.

    Attributes:
        type: the type of what is not data, e.g. ``"posix.system"``; empty if not known.

    >>> await bridge.pull("print", trust="data")
    Traceback (most recent call last):
    UntrustedPayload: print is builtins.builtin_function_or_method, which is not data; ...
    """

    def __init__(self, message: str, *, type: str = "") -> None:  # noqa: A002
        super().__init__(message)
        self.type = type


class ProtocolError(BridgeError):
    """The kernel's response does not follow the protocol.

    A fault of bridgehead, or of a program between it and the kernel; please report it.
    """


_KERNELS_SHOWN = 8  # errors of a FleetError that IPython shows
_LINES_SHOWN = 40  # of the traceback of one of them


class FleetError(ExceptionGroup[Exception]):
    """Some kernels of a fleet failed; what the others returned is in ``results``.

    It is an ``ExceptionGroup``, so ``except*`` takes its errors by their class. Each has a note
    that says which kernel it is about.

    Attributes:
        results: what the other kernels returned, by the kernel's index in the fleet.
        errors: the exceptions, by the kernel's index in the fleet. In the part of a group that
            ``except*`` gives, only those of that part.

    >>> await fleet[1].push(x=1)
    <Transfer x: ...>
    >>> try:
    ...     await fleet.pull("x")
    ... except FleetError as error:
    ...     print(error.results, error.errors)
    {1: 1} {0: NameNotFound("'x' is not defined in the kernel")}
    """

    results: dict[int, Any]
    errors: dict[int, Exception]

    def __new__(
        cls,
        message: str,
        exceptions: Sequence[Exception],
        results: Mapping[int, Any] | None = None,
        errors: Mapping[int, Exception] | None = None,
    ) -> Self:
        self = super().__new__(cls, message, exceptions)
        self.results, self.errors = dict(results or {}), dict(errors or {})
        return self

    def __init__(self, message: str, exceptions: Sequence[Exception], *rest: object) -> None:
        super().__init__(message, exceptions)

    def derive(self, exceptions: Sequence[Exception], /) -> FleetError:  # type: ignore[override]
        """Return a group of some of the errors, with the same results; ``except*`` calls this.

        >>> await fleet[1].push(x=1)
        <Transfer x: ...>
        >>> try:
        ...     await fleet.pull("x")
        ... except* NameNotFound as group:
        ...     print(type(group).__name__, group.results)
        FleetError {1: 1}
        """
        errors = {
            index: error
            for index, error in self.errors.items()
            if any(error is one for one in exceptions)
        }
        return FleetError(self.message, exceptions, self.results, errors)

    def _render_traceback_(self) -> list[str]:
        """Return what IPython shows: the caller's frames, and each kernel's error by its index.

        Of many kernels it is the first ones. Of errors with the same traceback it is shown once.
        """
        shown = _render(self, self.message)
        if shown is None:
            return [f"{type(self).__name__}: {self}"]
        errors: list[tuple[int | None, Exception]] = [*self.errors.items()]
        errors = errors or [(None, error) for error in self.exceptions]
        seen: dict[str, str] = {}  # which kernel's traceback is shown, by the traceback
        for index, error in errors[:_KERNELS_SHOWN]:
            shown += ["", *_lines_of_kernel(index, error, seen)]
        more = len(errors) - _KERNELS_SHOWN
        if more > 0:
            shown += ["", f"... and the errors of {more} more kernels: `error.errors` has all."]
        if self.results:
            known = f"{len(self.results)} other kernel{'s' * (len(self.results) > 1)}"
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
