"""The cell that the kernel's main thread runs, and interrupts that hit this cell and no other.

Rule: use the standard library only, and run on Python 3.8 and later. This file knows one method of
IPython, and signals. It knows no request of the remote part.

Facts this file rests on, measured with interrupts aimed at the ends of cells of 1 ms, with another
client's cell behind each (ipykernel 6.31 and 7.4):

- A signal that hits ipykernel outside IPython loses the reply: 22 of 43. One that hits IPython
  before or after the user's code may leave a lock of its history in the wrong state: 1 of 4,800
  cells ended with "release unlocked lock", and one kernel hung. IPython's callbacks before a cell
  swallow it, and the cell runs as if nothing had happened.
- ``pthread_kill`` of the main thread cuts ``time.sleep``. ``raise_signal``, ``interrupt_main`` and
  ``PyThreadState_SetAsyncExc`` wait until the sleep is over.
- A cell that awaits notices a signal at the next turn of its event loop, which may be seconds
  later. An empty callback from another thread makes the loop turn at once.
- A signal that comes after Python's last look at its signals and before ``time.sleep`` has begun
  to sleep cuts nothing: 143 of 135,638 that were aimed at this moment waited for the whole sleep.
  A second signal cuts it, and Python then looks at both.
- A signal that comes while ipykernel sends a question for input may leave half of it on the socket.
  The next question is then its other half, and no client can read it: of the cells that asked
  again after an interrupt, about one in 60 hung in ``input()``.
- ipykernel catches an interrupt of a request that is outside IPython, and logs it. A second one
  that comes meanwhile, or one in the hooks around the request, which change the handler, leaves
  the event loop, and the kernel exits with code 0: 20 of 3,000 operations that were
  interrupted twice within 20 ms.

Laws of the guard:

1. One lock protects the id of the running cell. The user's code begins and ends under it, and a
   signal is sent under it.
2. A signal that was sent takes effect before the user's code has ended. So neither IPython nor a
   later cell gets it. If the code blocks SIGINT, the system drops the signal between two cells,
   when ipykernel ignores SIGINT.
3. So every cell has a reply. An interrupt that comes when its code has ended changes nothing.
4. After a signal, SIGURG follows until Python has looked at its signals. Its handler does nothing,
   and where the user's code has one of its own, none is sent.
5. A question for input is sent whole: a signal that comes meanwhile takes effect afterwards.
6. An interrupt takes effect only where ipykernel catches it. When a request has ended, SIGINT is
   ignored until ipykernel puts its handler back. So no number of interrupts ends the kernel.
"""

from __future__ import annotations

import signal
import threading
from collections import deque
from contextlib import contextmanager
from inspect import isawaitable
from threading import RLock, Thread
from time import monotonic, sleep
from typing import Any, Callable, Iterator

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.remote.bootstrap import is_ipykernel

# Captured, because a user may replace them. Windows has neither of the two.
_pthread_kill: Any = getattr(signal, "pthread_kill", None)
_pthread_sigmask: Any = getattr(signal, "pthread_sigmask", None)
_SIGINT = signal.SIGINT
_SIGURG: Any = getattr(signal, "SIGURG", None)  # ignored by default, so one too many does no harm
this_thread = threading.get_ident
# s between two signals to one cell; an interrupt in between counts as delivered. A second signal
# must not arrive while the first one ends the cell.
APART = 0.05
# s between two SIGURG, at first and at most.
URGED_AGAIN, URGED_AT_MOST = 0.001, 1.0
WITHDRAWN = 1000
staged: dict[str, Any] = {}  # what was sent for cells that have not begun; see ``staging``
taken_stages: deque[str] = deque(maxlen=WITHDRAWN)  # ids of what cells have taken


class Uninterrupted:
    """In the main thread, SIGINT is delayed until the block has ended; then it is raised there."""

    def __enter__(self) -> None:
        self._came: Any = None
        # None: another thread, or a handler that Python did not install and cannot put back.
        self._handler: Any = None
        if this_thread() == threading.main_thread().ident:
            self._handler = signal.getsignal(_SIGINT)
        if self._handler is not None:
            signal.signal(_SIGINT, self._note)

    def _note(self, number: int, frame: Any) -> None:
        self._came = number, frame

    def __exit__(self, *error: object) -> None:
        if self._handler is not None:
            signal.signal(_SIGINT, self._handler)
            if self._came is not None and callable(self._handler):
                self._handler(*self._came)


class CellGuard:
    """The running cell of one kernel; see the laws above."""

    def __init__(self, shell: Any, at_end: Callable[[Any], object]) -> None:
        """Call ``at_end``, with the shell, when a cell's code has ended, before its reply."""
        self.shell, self.at_end, self.staged = shell, at_end, staged
        self.thread: Any = threading.main_thread().ident
        self.lock = RLock()  # a signal handler of the user's may run a cell, at any line below
        self.running = ""  # the id of the cell's message, or of the request, whose code runs
        self.begun: deque[str] = deque(maxlen=WITHDRAWN)  # ids of what has begun, most of it ended
        self.withdrawn: deque[str] = deque(maxlen=WITHDRAWN)  # ids of what is never to begin
        self.sent = 0.0  # when a signal was sent that may not have taken effect yet; 0 is never
        self.looked = True  # Python has looked at its signals since SIGURG was asked for
        self.urging = False  # a thread sends SIGURG

    def interrupt(self, cell: str) -> bool:
        """Interrupt the code of a cell, if it runs; return whether it does. For other threads.

        Only the main thread gets the signal. ipykernel's own interrupt also goes to the processes
        that cells of all clients have started.
        """
        with self.lock:
            if not cell or self.running != cell:
                return False
            if monotonic() - self.sent < APART:
                return True
            self.sent = monotonic()
            _pthread_kill(self.thread, _SIGINT)
        self.urge()
        return True

    def urge(self) -> None:
        """See to it that a signal that was sent takes effect in the code that runs."""
        call_soon(self.shell, wake_up)
        with self.lock:
            self.looked = False
            if not self.urging:
                self.urging = True
                Thread(target=self._urge, name="bridgehead urges", daemon=True).start()

    def _urge(self) -> None:
        wait = URGED_AGAIN
        while True:
            sleep(wait)
            wait = min(2 * wait, URGED_AT_MOST)
            with self.lock:
                if self.looked or not self.running or signal.getsignal(_SIGURG) != self.look:
                    self.urging = False
                    return
                _pthread_kill(self.thread, _SIGURG)

    def look(self, number: int, frame: Any) -> None:
        """Handle SIGURG: Python looks at its signals in their order, and SIGINT is before it."""
        self.looked = True

    def cancel(self, request: str) -> None:
        """Interrupt the code of a cell or of a request, or see to it that it never begins."""
        with self.lock:
            if not self.interrupt(request):
                self.withdraw(request)

    def withdraw(self, request: str) -> None:
        """See to it that the code of a cell or of a request never begins, unless it has."""
        with self.lock:
            if request not in self.begun:
                self.withdrawn.append(request)

    # ------------------------------------------------------------ in the main thread

    def run_request(self, request: str, work: Callable[[], Any]) -> Any:
        """Run the code of a request."""
        outer = self.running
        try:
            # The kernel puts its own handler back when the request has ended. That of Spyder does
            # nothing outside of cells.
            signal.signal(_SIGINT, signal.default_int_handler)
            self.begin(request)
            try:
                return work()
            finally:
                self.end(outer)
        except KeyboardInterrupt:
            self.end(outer)  # the interrupt may have cut this short
            raise

    async def run(self, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Have IPython run the code of a cell; return whether it raised."""
        outer, raised = self.running, None  # a cell may run another one
        try:
            message = self.shell.kernel.get_parent("shell")
            self.begin(str((message.get("header") or {}).get("msg_id")))
            try:
                with taken(self.shell, message, self.staged):
                    raised = await original(*args, **kwargs)
            finally:
                self.at_end(self.shell)
                self.end(outer)
        except (KeyboardInterrupt, NotTaken) as error:
            self.end(outer)  # the interrupt may have cut this short
            if raised is None:  # it came before or after the user's code: IPython did not see it
                raised = True
                result = kwargs.get("result")
                if result is not None:
                    cause = error.args[0] if isinstance(error, NotTaken) else error
                    result.error_in_exec = cause
                self.shell.showtraceback(running_compiled_code=True)
        return raised

    def begin(self, identity: str) -> None:
        """Note whose code begins; raise ``KeyboardInterrupt`` if it was cancelled before."""
        with self.lock:
            if identity in self.withdrawn:
                raise KeyboardInterrupt("withdrawn before it began")
            if signal.getsignal(_SIGURG) == signal.SIG_DFL:
                signal.signal(_SIGURG, self.look)
            self.running = identity
            self.begun.append(identity)

    def end(self, outer: str) -> None:
        """End the code: no signal is sent for it any more, and none is on its way afterwards.

        Raises ``KeyboardInterrupt`` if one was; the code may have to be ended again.
        """
        with self.lock:
            self.running = outer
        if self.sent:
            # The signal was sent to this thread. The system delivers it when a system call of this
            # thread returns, and ``pthread_sigmask`` then runs Python's handler.
            _pthread_sigmask(signal.SIG_BLOCK, ())
            self.sent = 0.0


class NotTaken(Exception):
    """What was sent for a cell failed in the cell; the argument is the error."""


@contextmanager
def taken(shell: Any, message: Any, stages: dict[str, Any]) -> Iterator[None]:
    """Have the code of a cell run with what was sent for it before its message.

    A cell whose stage is missing raises: without it, the code would run on old values. The code may
    run another cell, which has the same message.
    """
    # By the name of the module, which is another one in each version of bridgehead. The guards of
    # two versions see each cell.
    wanted = (message.get("content") or {}).get(__name__)
    if wanted is None or wanted in taken_stages:
        yield
        return
    stage = stages.get(str(wanted))
    if stage is None or stage.shell is not shell:
        text = "what was sent for this cell is not in the kernel any more; the cell did not run"
        raise NotTaken(RuntimeError(text))
    taken_stages.append(wanted)
    try:
        stage.begin(message["header"]["msg_id"])
    except Exception as error:
        raise NotTaken(error) from error
    try:
        yield
    finally:
        with Uninterrupted():  # else the end of what it printed is lost
            stage.finish()


def wake_up() -> None:
    """Do nothing, in a loop that has to turn."""


def loop_of_cells(shell: Any) -> Any:
    """Return the event loop of the cells, or None."""
    kernel: Any = getattr(shell, "kernel", None)
    return getattr(getattr(kernel, "io_loop", None), "asyncio_loop", None)


def call_soon(shell: Any, function: Callable[[], object]) -> bool:
    """Have the event loop of the cells call a function; return false if there is no such loop."""
    try:
        loop_of_cells(shell).call_soon_threadsafe(function)
    except (AttributeError, RuntimeError):  # no such loop, or the kernel closes it
        return False
    return True


def ask_whole(kernel: Any) -> None:
    """Have a kernel send each question for input whole, or not at all, whatever interrupts it."""
    session, questions = kernel.session, getattr(kernel, "stdin_socket", None)
    if session is None or questions is None:
        return
    original = session.send

    def send(stream: Any, *args: Any, **kwargs: Any) -> Any:
        if stream is not questions:
            return original(stream, *args, **kwargs)
        with Uninterrupted():
            return original(stream, *args, **kwargs)

    session.send = send


def handle_whole(guard: CellGuard) -> None:
    """Have ipykernel handle each request in the main thread according to law 6."""
    kernel: Any = guard.shell.kernel
    if getattr(type(kernel).pre_handler_hook, "__module__", None) != "ipykernel.kernelbase":
        return  # another program's, which does what is not known here
    is_next = False  # the handler that runs next is the one that the hook was for

    def pre_handler_hook() -> None:
        # As ipykernel's own, but an interrupt that came here would not be caught.
        nonlocal is_next
        if this_thread() == guard.thread:
            kernel.saved_sigint_handler = signal.getsignal(_SIGINT)
            is_next = True

    def whole(original: Callable[..., Any]) -> Callable[..., Any]:
        async def handle(*args: Any) -> None:
            nonlocal is_next
            # A subshell, or a message of a widget beside a cell that awaits, leaves SIGINT alone.
            is_alone = False
            if this_thread() == guard.thread:
                is_alone, is_next = is_next, False
            try:
                if is_alone:
                    signal.signal(_SIGINT, signal.default_int_handler)
                response = original(*args)
                if isawaitable(response):
                    await response
            finally:
                if is_alone:
                    try:
                        signal.signal(_SIGINT, signal.SIG_IGN)
                    except KeyboardInterrupt:  # one that came before
                        signal.signal(_SIGINT, signal.SIG_IGN)
                        raise

        return handle

    handlers = kernel.shell_handlers
    handlers.update({kind: whole(original) for kind, original in handlers.items()})
    kernel.pre_handler_hook = pre_handler_hook


def keep_payload(guard: CellGuard) -> None:
    """Have a request in a subshell leave alone what a cell adds to its own reply.

    IPython keeps it in one place for all threads, and the reply to any request takes it from there.
    Beside requests in a subshell, 6 of 337 cells lost what was reported for them (measured).
    """
    kernel, manager = guard.shell.kernel, getattr(guard.shell, "payload_manager", None)
    if manager is None:
        return
    read, clear = manager.read_payload, manager.clear_payload

    def is_beside() -> bool:  # a request without code adds nothing
        if this_thread() == guard.thread:
            return False
        return not (kernel.get_parent("shell").get("content") or {}).get("code")

    manager.read_payload = lambda: [] if is_beside() else read()
    manager.clear_payload = lambda: None if is_beside() else clear()


def cell_guard(shell: Any, at_end: Callable[[Any], object]) -> CellGuard | None:
    """Return the guard of a shell, installed if it is missing; None where there can be none.

    It replaces ``run_ast_nodes`` of the shell, by which IPython runs the code of each cell. It
    stays, like the remote module: other bridges may use it, and a cell may be running.
    """
    if _pthread_kill is None or not is_ipykernel(getattr(shell, "kernel", None)):
        return None
    original = getattr(shell, "run_ast_nodes", None)
    if original is None:  # a loopback
        return None
    # By the name of the module, which is another one in each version of bridgehead. Remote parts
    # of one version share the guard, also one that is installed anew.
    known: CellGuard | None = getattr(original, __name__, None)
    if known is not None:
        known.staged = staged  # of the newest remote part: only that one is asked
        return known
    guard = CellGuard(shell, at_end)
    ask_whole(shell.kernel)
    handle_whole(guard)
    keep_payload(guard)

    async def run_ast_nodes(*args: Any, **kwargs: Any) -> Any:
        if this_thread() != guard.thread:  # a subshell, or a thread of the user's
            return await original(*args, **kwargs)
        return await guard.run(original, args, kwargs)

    setattr(run_ast_nodes, __name__, guard)
    shell.run_ast_nodes = run_ast_nodes
    return guard
