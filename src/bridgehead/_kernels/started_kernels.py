"""Kernels that ``bridgehead start`` leaves running: how they start, end, and start again.

Rule: a kernel that no program watches, on this machine. A record in the private folder beside its
connection file says which process it is; a process of another time or machine with the same id is
left alone. ``launch`` has the kernels that end with the bridge, and both start them by the same
functions. A manager of jupyter_client ends them, as it ends its own.
"""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import zmq.asyncio
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning.local_provisioner import LocalProvisioner
from jupyter_core.paths import jupyter_runtime_dir

from bridgehead._errors import KernelNotFound, NotSupported, TransportError
from bridgehead._kernels.connection_file import connection_files, find, read
from bridgehead._kernels.launch import Plan, encrypt, environment, kernelspec, spawned
from bridgehead._kernels.launch_folder import LaunchFolder
from bridgehead._shipped.wire.process import own_process
from bridgehead._transports.evidence import LocalProcess, facts_of
from bridgehead._transports.process import KernelProcess
from bridgehead._transports.tasks import finish, noted_on
from bridgehead._transports.zmq import ZmqTransport

# In a kernel that runs ``bridgehead start``, these name its own parent and its own notebook.
OF_A_PARENT = ("JPY_PARENT_PID", "JPY_SESSION_NAME")


@dataclass(frozen=True, slots=True)
class StartedKernel:
    """A kernel that ``start`` left running.

    Attributes:
        file: its connection file.
        folder: the private folder beside it.
        process: the kernel's process.
        name: its kernelspec.
        cwd: the folder in which it was started.
    """

    file: str
    folder: LaunchFolder
    process: LocalProcess
    name: str
    cwd: str

    @classmethod
    def of(cls, file: str) -> StartedKernel | None:
        """Return the kernel of a connection file; None if ``start`` did not start it, or it ended.

        The record is written by this user, but not necessarily by this version.
        """
        for folder in LaunchFolder.all_of(Path(file)):
            record = folder.noted().get("kernel")
            if not isinstance(record, dict):
                continue
            process = LocalProcess.find(record.get("process"))
            if process is not None:
                name, cwd = str(record.get("name")), str(record.get("cwd"))
                return cls(file, folder, process, name, cwd)
        return None

    def remove_files(self) -> None:
        """Remove the connection file and the folder, after the end of the process."""
        Path(self.file).unlink(missing_ok=True)
        self.folder.remove()


def started(existing: str | None) -> StartedKernel:
    """Return the kernel that ``existing`` chooses, or the only one that ``start`` left running.

    Raises:
        KernelNotFound: there is none, or there are several.
        NotSupported: another program started the kernel, or this system has no /proc.
    """
    if own_process() is None:
        raise NotSupported(
            "this system does not say which process started when; 'bridgehead ls' shows the pid of "
            "the kernel, for kill"
        )
    if existing is not None:
        file = find(existing)
        found = StartedKernel.of(file)
        if found is None:
            raise NotSupported(
                f"no running kernel of 'bridgehead start' has the connection file {file}; only "
                "the program that started a kernel ends it"
            )
        return found
    files = map(str, connection_files())
    running = [one for one in map(StartedKernel.of, files) if one is not None]
    if len(running) == 1:
        return running[0]
    if not running:
        raise KernelNotFound(
            "no kernel of 'bridgehead start' is running with a connection file in "
            f"{jupyter_runtime_dir()}; choose one with another file by --existing, one of a server "
            "by --url"
        )
    names = ", ".join(Path(one.file).name for one in running)
    raise KernelNotFound(
        f"{len(running)} kernels of 'bridgehead start' are running; "
        f"choose one with --existing: {names}"
    )


async def start(
    kernel_name: str,
    *,
    connection_file: str | None,
    cwd: str | None,
    encryption: bool,
    timeout: float,
) -> tuple[str, int]:
    """Start a kernel that outlives this program; return its connection file and its pid.

    A failure or a cancel ends the kernel again.

    Raises:
        KernelNotFound: as ``launch`` does.
        KernelDied: the kernel ended at once.
        NotSupported: a provisioner starts the kernel, or ``encryption`` does not work.
    """
    plan = Plan.make(kernel_name, connection_file, environment({}), cwd, encryption)
    if plan.provisioner is not LocalProvisioner:
        plan.clean()
        raise NotSupported(
            f"{plan.provisioner.__name__} starts the kernel {kernel_name!r}, and may end it with "
            "this program; only a kernel that jupyter_client itself starts here can stay"
        )
    new = _NewKernel(plan.manager, plan.folder, plan.options, _absolute(cwd), encryption)
    with plan.ports:
        async with new:
            await new.begin()
            await new.answer(timeout)
            new.leave()
    return new.file, new.pid


async def stop(kernel: StartedKernel) -> None:
    """End a kernel: by a request, after some seconds by signals; and remove its files.

    Raises:
        TransportError: its process has not ended.
    """
    await finish(_owner(kernel).shutdown_kernel())
    _check_ended(kernel)
    kernel.remove_files()


async def restart(kernel: StartedKernel, timeout: float) -> int:
    """Replace a kernel's process, with the same connection file; return the new pid.

    Programs that are connected stay connected. The new process has this program's environment,
    and the folder of the old one. A cancel leaves it running, though it may not answer yet.

    Raises:
        KernelNotFound: its kernelspec is gone, or the new process does not answer.
        KernelDied: the new process ended at once.
        NotSupported: the folder in which it was started is gone.
        TransportError: the old process has not ended.
    """
    _check_cwd(kernel)
    manager = _manager(kernel)  # of its own: no manager of jupyter_client starts after a shutdown
    encrypted = manager.curve_publickey is not None
    if encrypted:
        encrypt(manager)
    options = {"env": environment({}), "cwd": kernel.cwd}
    # While no process listens, the folder is this program's.
    kernel.folder.note(kernel=kernel.folder.noted().get("kernel"))
    async with _NewKernel(manager, kernel.folder, options, kernel.cwd, encrypted) as new:
        try:
            await finish(_replace(kernel, new))  # a cancel in between would leave no kernel
            await new.answer(timeout)
        except asyncio.CancelledError:
            new.leave()
            raise
        new.leave()
    return new.pid


async def _replace(kernel: StartedKernel, new: _NewKernel) -> None:
    await _owner(kernel).shutdown_kernel(restart=True)
    _check_ended(kernel)
    await new.begin()


class _NewKernel:
    """A kernel that is being started; it ends with the block, unless ``leave`` was called."""

    def __init__(
        self,
        manager: AsyncKernelManager,
        folder: LaunchFolder,
        options: dict[str, Any],
        cwd: str,
        encryption: bool,
    ) -> None:
        for name in OF_A_PARENT:
            options["env"].pop(name, None)
        self._manager, self._folder, self._options = manager, folder, options
        self._cwd, self._encryption = cwd, encryption
        self._log: Any = None  # the process has a descriptor of its own
        self._transport: ZmqTransport | None = None
        self.file: str = manager.connection_file
        self.pid = 0

    async def __aenter__(self) -> Self:
        return self

    async def begin(self) -> None:
        """Start the process, and record which one it is, for ``StartedKernel`` and ``sweep``."""
        self._log = log = self._folder.log()
        options = {**self._options, "stdout": log, "stderr": log, "independent": True}
        process = KernelProcess(self._manager, ZmqTransport.timings, log, self._folder.remove)
        self._transport = await spawned(process, options, self._encryption, frozenset())
        self.pid = _pid(self._manager)
        name = self._manager.kernel_name
        record = {"process": facts_of(self.pid), "name": name, "cwd": self._cwd}
        self._folder.note(kernel=record)

    async def answer(self, timeout: float) -> None:
        """Wait until the kernel answers."""
        assert self._transport is not None
        await self._transport.open(timeout, timeout)

    def leave(self) -> None:
        """Have the kernel outlive the block, if it began."""
        if self._transport is not None:
            self._transport.owned = False
            self._manager.connection_file = ""  # the manager's end would remove the file

    async def __aexit__(self, _: object, error: BaseException | None, __: object) -> None:
        with noted_on(error):
            if self._transport is not None:
                await self._transport.aclose()
        if self._log is not None:
            self._log.close()


def _absolute(folder: str | None) -> str:
    return str(Path(folder or ".").absolute())


def _manager(kernel: StartedKernel) -> AsyncKernelManager:
    """Return a manager with the kernel's address and keys, and no process."""
    manager = AsyncKernelManager(
        kernel_name=kernel.name, context=zmq.asyncio.Context.instance(), cache_ports=False
    )
    manager.connection_file = kernel.file
    info: Any = read(kernel.file, unnoticed=True).info
    manager.load_connection_info(info)
    kernelspec(manager)
    return manager


def _owner(kernel: StartedKernel) -> AsyncKernelManager:
    """Return a manager that has the kernel's process, as if it had started it."""
    manager = _manager(kernel)
    provisioner = LocalProvisioner(parent=manager, kernel_spec=manager.kernel_spec)
    provisioner.pid = provisioner.pgid = kernel.process.pid  # it leads a group of its own
    process: Any = _Stranger(kernel.process)
    provisioner.process = process
    manager.provisioner = provisioner
    return manager


def _pid(manager: AsyncKernelManager) -> int:
    assert isinstance(manager.provisioner, LocalProvisioner)
    assert manager.provisioner.pid is not None
    return manager.provisioner.pid


def _check_ended(kernel: StartedKernel) -> None:
    if kernel.process.has_ended() is not True:
        raise TransportError(f"the kernel's process {kernel.process.pid} has not ended; try again")


def _check_cwd(kernel: StartedKernel) -> None:
    if not Path(kernel.cwd).is_dir():
        raise NotSupported(
            f"the kernel was not restarted: the folder {kernel.cwd}, in which it was started, does "
            "not exist; make it again, or stop the kernel and start another one"
        )


class _Stranger:
    """A process that is no child of this one, with what a provisioner uses of ``Popen``."""

    stdin = stdout = stderr = None

    def __init__(self, process: LocalProcess) -> None:
        self._process = process
        self.pid: int = process.pid

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def poll(self) -> int | None:
        """Return 0 if the process has ended; only its parent gets the exit code."""
        return 0 if self._process.has_ended() is True else None

    def wait(self) -> int | None:
        return self.poll()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)
