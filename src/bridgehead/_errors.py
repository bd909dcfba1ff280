"""The exceptions, in one tree.

Rule: the base of a class says whether the request ran; the class says why; the message says
what was wrong, where, and what to do. Every class pickles.

    BridgeError
      NotSent               it was refused before it crossed
        KernelNotFound      no kernel there, or none answers
        UnsupportedKernel   not Python, or it evaluates no user_expressions
        EncodeError         the object cannot be pickled; ``path`` says which part
        IncompatiblePython  code objects don't cross between Python minor versions
        PayloadTooLarge     it has more bytes than ``max_bytes``; not one of them crossed
        InsecureConnection  the connection would let a stranger in
        BridgeClosed        the bridge was closed before
      NotExecuted           it arrived and was refused; the kernel is as it was
        RequestAborted      another client's failing cell emptied the queue, again and again
        IntegrityError      what arrived there is not what was sent
        NotSupported        this kernel or this connection cannot do it
        MissingInKernel     the kernel lacks a package that the object needs
        NameNotFound        no such name in the kernel (also a KeyError)
      RemoteError           it ran, and raised over there
      OutcomeUnknown        it may have run, wholly or not at all
        KernelDied          the process is gone
        KernelRestarted     another process answers now; its namespace is new
        KernelUnresponsive  the process is there and shows no sign of life; it may come back
        ReplyLost           the kernel is done with it, but its reply never came or is damaged
        TransportError      the connection itself failed
      DecodeError           it arrived here but cannot be unpickled here
      UntrustedPayload      it is more than data, and only data is trusted; it was not opened
      ProtocolError         the other side does not speak this protocol

A deadline that passed is the builtin ``TimeoutError``; a wrong argument is a ``ValueError``
or a ``TypeError``, raised before anything is sent. ``InsecureConnectionWarning`` is a warning:
the connection is made all the same.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

_ANSI = re.compile(r"\x1b\[[0-9;]*m")


class BridgeError(Exception):
    """Base of everything that bridgehead raises of its own.

    >>> try:
    ...     await bridge.pull("nothing")
    ... except BridgeError as error:
    ...     print(type(error).__name__)
    NameNotFound
    """


class NotSent(BridgeError):
    """It was refused before it crossed; nothing ran in the kernel.

    But for the expression of a pull that turned out ``PayloadTooLarge``: that was evaluated.
    """


class KernelNotFound(NotSent):
    """There is no such kernel, or nothing answers at its address."""


class UnsupportedKernel(NotSent):
    """The kernel is not a Python kernel that evaluates ``user_expressions``; take another one."""


class EncodeError(NotSent):
    """A value cannot be pickled.

    Attributes:
        path: the part that is to blame, as an expression, e.g. ``"config['lock']"``.

        >>> await bridge.push(config={"source": (n for n in range(3))})
        Traceback (most recent call last):
        EncodeError: config['source'] cannot be pickled: TypeError: cannot pickle 'generator' object
    """

    def __init__(self, message: str, *, path: str = "") -> None:
        super().__init__(message)
        self.path = path


class IncompatiblePython(NotSent):
    """Code objects would have to cross between two Python minor versions, and crash there.

    Push data alone, and have a cell define the functions; or run the same Python on both sides.
    """


class PayloadTooLarge(NotSent):
    """The object has more bytes than ``max_bytes`` allows; not one of them crossed.

    Nothing is bound there by a push. What the expression of a pull does besides giving a value,
    it has done.

    Attributes:
        bytes: how many it has; None if not known.

        >>> await bridge.pull("bytes(1000)", max_bytes=100)
        Traceback (most recent call last):
        PayloadTooLarge: it has 1,020 bytes, and max_bytes allows 100; nothing of it crossed
    """

    def __init__(self, message: str, *, bytes: int | None = None) -> None:  # noqa: A002
        super().__init__(message)
        self.bytes = bytes


class InsecureConnection(NotSent):
    """Anybody on the way could read or forge what crosses; ``insecure=`` puts up with it."""


class InsecureConnectionWarning(UserWarning):
    """Others on this machine can read the connection file, and with it have the kernel.

    ``chmod 600`` it.
    """


class BridgeClosed(NotSent):
    """The bridge was closed before the call; open another one.

    >>> await bridge.aclose()
    >>> await bridge.pull("x")
    Traceback (most recent call last):
    BridgeClosed: this bridge was closed
    """


class NotExecuted(BridgeError):
    """The request was refused or dropped over there; the kernel is as it was."""


class RequestAborted(NotExecuted):
    """Another client's failing cell aborted the request each time it was tried; ask again."""


class IntegrityError(NotExecuted):
    """Frames were lost, added, reordered or altered on the way, or changed while they crossed."""


class NotSupported(NotExecuted):
    """This kernel, or the way it is connected, cannot do what was asked.

    >>> await bridge.interrupt()
    Traceback (most recent call last):
    NotSupported: a loopback has no process to interrupt
    """


class MissingInKernel(NotExecuted):
    """The kernel's interpreter lacks a package; its namespace is as it was.

    Attributes:
        module: the import that failed there; ``%pip install`` it in the kernel.
    """

    def __init__(self, message: str, *, module: str = "") -> None:
        super().__init__(message)
        self.module = module


class NameNotFound(NotExecuted, KeyError):
    """No such name in the kernel.

    Attributes:
        names: the names that are missing.

        >>> await bridge.pull("nothing")
        Traceback (most recent call last):
        NameNotFound: no 'nothing' in the kernel
    """

    def __init__(self, message: str, *, names: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.names: tuple[str, ...] = tuple(names)

    def __str__(self) -> str:
        # KeyError shows the repr of its argument; this one carries a sentence.
        return Exception.__str__(self)


class RemoteError(BridgeError):
    """The request ran in the kernel and raised there.

    ``__cause__`` is the original exception where it could be rebuilt here.

    Attributes:
        ename: the exception's type name.
        evalue: its message.
        traceback: the kernel's own traceback, one string a line, possibly with ANSI colours.
        result: of a cell that raised, the ``Result`` with what it gave before; else None.

        >>> try:
        ...     await bridge.run("print('begun'); 1 / 0")
        ... except RemoteError as error:
        ...     print(error.ename, error.result.stdout)
        ZeroDivisionError begun
    """

    result: Any = None

    def __init__(self, ename: str, evalue: str, traceback: Sequence[str] = ()) -> None:
        super().__init__(ename, evalue, tuple(traceback))
        self.ename: str = ename
        self.evalue: str = evalue
        self.traceback: list[str] = list(traceback)

    def __str__(self) -> str:
        head = f"{self.ename}: {self.evalue}" if self.evalue else self.ename
        if not self.traceback:
            return head
        lines = [_ANSI.sub("", line) for line in self.traceback]
        return "\n".join([head, "", "in the kernel:", *lines])

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.ename}: {self.evalue}>"

    def _render_traceback_(self) -> list[str]:
        """IPython shows this instead of the frames that merely carried the error."""
        return self.traceback or [str(self)]


class OutcomeUnknown(BridgeError):
    """Whether the request ran cannot be told; if it did, it ran as a whole."""


class KernelDied(OutcomeUnknown):
    """The kernel's process is gone, and its namespace with it.

    Attributes:
        exit_code: the process's exit code, negative for a signal; None if not known.
    """

    def __init__(self, message: str, *, exit_code: int | None = None) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class KernelRestarted(OutcomeUnknown):
    """The kernel was restarted: the namespace is a new one. The next call goes there."""


class KernelUnresponsive(OutcomeUnknown):
    """The kernel's process is stopped, or starved; what was sent to it may run when it goes on."""


class ReplyLost(OutcomeUnknown):
    """The kernel is done with the request, but its reply never came, or came damaged.

    What a cell did, it did: look at its names before it is run again.
    """


class TransportError(OutcomeUnknown):
    """The connection failed while the request was on its way."""


class DecodeError(BridgeError):
    """A value arrived here but cannot be unpickled here."""


class UntrustedPayload(BridgeError):
    """What came is more than data, where only data is trusted; it was not opened, nothing ran.

    Attributes:
        type: what is in it that is no data, e.g. ``"posix.system"``; empty if not known.

        >>> await bridge.pull("print", trust="data")
        Traceback (most recent call last):
        UntrustedPayload: print is builtins.builtin_function_or_method, which is not data; ...
    """

    def __init__(self, message: str, *, type: str = "") -> None:  # noqa: A002
        super().__init__(message)
        self.type = type


class ProtocolError(BridgeError):
    """The other side answered something that this protocol does not know."""
