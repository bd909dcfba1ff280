"""Kernels forked from one warm process, for tests that do not test starting.

Rule: a test sees no difference between a forked and a started kernel. A forked kernel is a child
of the process that launched it, leads its own session, and has the folder, environment,
descriptors and signal handlers that jupyter_client gives to a kernel. A kernel that cannot be
forked with all of these is started.

Facts this file rests on, measured: a started kernel needs 0.32 CPU seconds until it answers,
nearly all of them for imports; a forked kernel needs 0.05. The warm process forks twice, and the
process in between exits. Its child then belongs to the nearest subreaper above, which is the
test's process at that moment (``prctl``). So the parent of the kernel is the test's process, as
after ``Popen``: the test sees the exit status, and the kernel sees the end of its parent.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import Any, NoReturn

SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER in <linux/prctl.h>
NUMBER = 4  # bytes of a number on the socket
LAUNCHER = "ipykernel_launcher"
# The imports of a kernel until it answers, without numpy, because numpy starts threads.
IMPORTS = [
    "ipykernel.kernelapp",
    "ipykernel.debugger",
    "IPython.core.completerlib",
    "IPython.core.debugger",
    "IPython.core.oinspect",
    "IPython.extensions.storemagic",
    "sqlite3",
    "tornado.platform.asyncio",
]
# Variables that the interpreter, the C library or one of the imports reads only once.
READ_ONCE = ("PYTHON", "LD_", "LC_", "LANG", "MALLOC_", "GLIBC_", "PYDEVD_", "DEBUGPY_")


class ForkedKernel(subprocess.Popen[bytes]):
    """A child of this process that ``Popen`` did not start but manages like its own."""

    def __init__(self, args: list[str], pid: int) -> None:
        self.args = args
        self.pid = pid
        self.returncode = None
        self.stdin = self.stdout = self.stderr = None
        self._child_created = True
        self._communication_started = False
        self._input = None
        self._sigint_wait_secs = 0.25
        self._waitpid_lock = threading.Lock()


class KernelForker:
    """A replacement for jupyter_client's ``launch_kernel`` that forks kernels.

    It starts kernels when ``enabled`` is false, and when it cannot fork one.
    """

    def __init__(self, launch_kernel: Callable[..., subprocess.Popen[bytes]]) -> None:
        self.enabled = True
        self.launch_kernel = launch_kernel
        self._lock = threading.Lock()
        self._environment: dict[str, str] = {}  # of the warm process
        self._prctl = ctypes.CDLL(None, use_errno=True).prctl
        self._socket: socket.socket | None = None
        self._server: subprocess.Popen[bytes] | None = None

    def close(self) -> None:
        """End the warm process; the kernels continue, because they are not its children."""
        if self._socket is not None and self._server is not None:
            self._socket.close()
            self._server.wait()

    def __call__(
        self,
        cmd: list[str],
        stdin: int | None = None,
        stdout: Any = None,
        stderr: Any = None,
        env: dict[str, str] | None = None,
        independent: bool = False,
        cwd: str | None = None,
        **options: Any,
    ) -> subprocess.Popen[bytes]:
        environment = dict(os.environ if env is None else env)
        if (
            not self.enabled
            or cmd[:3] != [sys.executable, "-m", LAUNCHER]
            or stdin is not None
            or independent
            or options
            or not os.path.isdir(cwd or ".")
            or _read_once(environment) != _read_once(self._environment or os.environ)
        ):
            return self.launch_kernel(cmd, stdin, stdout, stderr, env, independent, cwd, **options)
        environment["JPY_PARENT_PID"] = str(os.getpid())
        request = {"argv": cmd[3:], "cwd": os.path.abspath(cwd or "."), "env": environment}
        with self._lock, open(os.devnull, "rb") as nothing:
            files = [nothing.fileno(), _descriptor(stdout, 1), _descriptor(stderr, 2)]
            return ForkedKernel(cmd, self._fork(request, files))

    def _fork(self, request: dict[str, Any], files: list[int]) -> int:
        if self._socket is None:
            self._socket = self._warm()
        body = json.dumps(request).encode()
        message = len(body).to_bytes(NUMBER, "big") + body
        with self._subreaper():
            sent = socket.send_fds(self._socket, [message], files)
            self._socket.sendall(message[sent:])
            pid = int.from_bytes(_exactly(self._socket, NUMBER), "big")
            _exactly(self._socket, NUMBER)  # the process in between has exited
        return pid

    @contextlib.contextmanager
    def _subreaper(self) -> Iterator[None]:
        # Only for this moment, because orphans of other tests belong to init.
        self._set_subreaper(1)
        try:
            yield
        finally:
            self._set_subreaper(0)

    def _set_subreaper(self, value: int) -> None:
        if self._prctl(SUBREAPER, value, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")

    def _warm(self) -> socket.socket:
        test_end, warm_end = socket.socketpair()
        self._environment = dict(os.environ)
        with warm_end:
            self._server = subprocess.Popen(
                [sys.executable, __file__, str(warm_end.fileno())],
                pass_fds=[warm_end.fileno()],
                stdin=subprocess.DEVNULL,
                env=self._environment,
                start_new_session=True,  # Ctrl-C in pytest's terminal must not reach it
            )
        return test_end


def _read_once(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(READ_ONCE)}


def _descriptor(file: Any, default: int) -> int:
    if file is None:
        return default
    return file if isinstance(file, int) else int(file.fileno())


def _exactly(source: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        received = source.recv(size - len(data))
        if not received:
            raise EOFError("the other process has ended")
        data += received
    return data


# ---------------------------------------------------------------- the warm process


class _Kernel(BaseException):
    """Leaves the stack frames of the warm process in a forked kernel."""

    def __init__(self, argv: list[str], parent: int) -> None:
        self.argv = argv
        self.parent = parent


def _main() -> None:
    del sys.path[0]  # this file's folder; ipykernel_launcher removes its own folder, too
    parent = os.getppid()
    try:
        with socket.socket(fileno=int(sys.argv[1])) as source:
            _serve(source, parent)
        return
    except _Kernel as kernel:
        argv = kernel.argv
    from ipykernel.kernelapp import IPKernelApp

    sys.argv = [LAUNCHER_FILE, *argv]
    # ipykernel reads JPY_PARENT_PID when it is imported, which was before the fork.
    IPKernelApp.launch_instance(parent_handle=parent)


def _serve(source: socket.socket, parent: int) -> None:
    """Fork a kernel for each request, until the test's process closes the socket or ends."""
    before = dict(os.environ)
    for name in IMPORTS:
        with contextlib.suppress(ImportError):  # another version lacks it
            import_module(name)
    set_by_imports = dict(os.environ.items() - before.items())
    gc.collect()
    gc.freeze()  # otherwise the first collection in a kernel copies every page
    while True:
        try:
            request, files = _receive(source)
        except EOFError:
            return
        between = os.fork()
        if not between:
            request["env"] |= set_by_imports
            _fork_kernel(source, request, files, parent)
        for file in files:
            os.close(file)
        os.waitpid(between, 0)
        source.sendall(bytes(NUMBER))


def _receive(source: socket.socket) -> tuple[dict[str, Any], list[int]]:
    head, files, _, _ = socket.recv_fds(source, NUMBER, 3)
    if not head:
        raise EOFError
    head += _exactly(source, NUMBER - len(head))
    return json.loads(_exactly(source, int.from_bytes(head, "big"))), files


def _fork_kernel(
    source: socket.socket, request: dict[str, Any], files: list[int], parent: int
) -> NoReturn:
    """Fork the kernel, which raises ``_Kernel``, and exit."""
    is_leader, leads = os.pipe()
    kernel = os.fork()
    if kernel:
        os.close(leads)
        os.read(is_leader, 1)  # wait, because jupyter_client asks at once for the process group
        source.sendall(kernel.to_bytes(NUMBER, "big"))
        os._exit(0)
    os.setsid()
    source.close()
    os.close(is_leader)
    os.close(leads)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    time.tzset()
    while os.getppid() != parent:
        if os.getppid() == 1:
            os._exit(1)
        time.sleep(0.0005)
    raise _Kernel(request["argv"], parent)


if __name__ == "__main__":
    from importlib.util import find_spec

    LAUNCHER_FILE = str(find_spec(LAUNCHER).origin)  # type: ignore[union-attr]
    _main()
