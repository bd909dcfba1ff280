"""Start a kernel, and wait until it answers.

Rule: what ``Bridge.launch`` needs up to an open transport: the kernelspec, its provisioner, the
connection file and its encryption. ``_transports.process`` watches and ends the process,
``security`` checks the connection.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zmq.asyncio
from jupyter_client.connect import port_names
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager, NoSuchKernel
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning.factory import KernelProvisionerFactory
from jupyter_client.provisioning.local_provisioner import LocalProvisioner
from jupyter_client.provisioning.provisioner_base import KernelProvisionerBase
from jupyter_core.paths import jupyter_runtime_dir, secure_write
from traitlets import TraitError

from bridgehead._errors import KernelDied, KernelNotFound, NotSupported
from bridgehead._kernels.descriptors import LAUNCHED, check_descriptors
from bridgehead._kernels.launch_folder import LaunchFolder, is_of_running_kernel, sweep
from bridgehead._kernels.reserved_ports import CAN_RESERVE, reserved_port
from bridgehead._kernels.security import checked
from bridgehead._transports.process import KernelProcess, checked_limits, limited
from bridgehead._transports.tasks import finish, noted_on
from bridgehead._transports.zmq import ZmqTransport

# The variables without which most programs do not work; on Windows none starts without the last.
ALWAYS_INHERITED = ("PATH", "HOME", "LANG", "TMPDIR", "SYSTEMROOT")
ENOUGH = 4 << 30  # bytes of address space with which each kernel starts
WRITTEN = 1024  # bytes; a connection file has about 300, with CURVE keys 500


async def launch(
    kernel_name: str,
    *,
    connection_file: str | os.PathLike[str] | None,
    env: Mapping[str, str] | None,
    inherit_env: bool | Collection[str],
    limits: Mapping[str, int] | None,
    cwd: str | os.PathLike[str] | None,
    encryption: bool,
    insecure: frozenset[str],
    timeout: float,
) -> ZmqTransport:
    """Start a kernel and wait until it answers; a failure or a cancel ends the kernel again."""
    limits = checked_limits(limits)
    plan = Plan.make(
        kernel_name, connection_file, environment(env or {}, inherit_env), cwd, encryption, limits
    )
    log = None
    if issubclass(plan.provisioner, LocalProvisioner):  # other provisioners may not call Popen
        log = _log_file()
        output = subprocess.DEVNULL if log is None else log
        plan.options.update(stdout=output, stderr=output)
    if limits and not issubclass(plan.provisioner, LocalProvisioner):
        plan.clean()
        kind = plan.provisioner.__name__
        raise NotSupported(
            f"limits= needs a process on this machine, not {kind}'s; nothing was started"
        )
    process = KernelProcess(plan.manager, ZmqTransport.timings, log, plan.clean, limits)
    transport = await spawned(process, plan.options, encryption, insecure)
    try:
        await transport.open(timeout, timeout)
        process.check_limits()
    except BaseException as error:
        memory = limits.get("memory", ENOUGH)
        if memory < ENOUGH and isinstance(error, (KernelDied, KernelNotFound)):
            error.add_note(  # what the kernel wrote is about threads or files, or it hangs
                f"it had limits={{'memory': {memory}}}; a kernel reserves up to a gigabyte of "
                "address space to start, and numpy with threads more; most of it is never used"
            )
        with noted_on(error):
            await transport.aclose()
        raise
    return transport


class LimitingManager(AsyncKernelManager):
    """A manager whose kernels have ``limits``, those of ``Bridge.launch``."""

    limits: Mapping[str, int]

    def format_kernel_cmd(self, extra_arguments: list[str] | None = None) -> list[str]:
        """Return the command that starts the kernel; the provisioner asks for it each time."""
        return limited(super().format_kernel_cmd(extra_arguments), self.limits)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a kernel is started with.

    Attributes:
        manager: its manager, which has started nothing yet.
        provisioner: the class that will start it.
        folder: the private folder beside its connection file.
        ports: its TCP ports, reserved until this is closed.
        options: for ``manager.start_kernel``.
    """

    manager: AsyncKernelManager
    provisioner: type[KernelProvisionerBase]
    folder: LaunchFolder
    ports: contextlib.ExitStack
    options: dict[str, Any]

    @classmethod
    def make(
        cls,
        kernel_name: str,
        connection_file: str | os.PathLike[str] | None,
        env: Mapping[str, str],
        cwd: str | os.PathLike[str] | None,
        encryption: bool,
        limits: Mapping[str, int] | None = None,
    ) -> Plan:
        """Choose the transport, and make the folder.

        ``env`` are all its variables, and ``limits`` those of ``Bridge.launch``, checked.
        """
        check_descriptors(LAUNCHED)
        # One context for the sockets of all managers: each would have two threads, and six
        # descriptors.
        context = zmq.asyncio.Context.instance()
        manager = LimitingManager(kernel_name=kernel_name, context=context)
        manager.limits = limits or {}
        spec = kernelspec(manager)
        provisioner = _provisioner(spec)
        if encryption:
            encrypt(manager)
        options: dict[str, Any] = {"env": dict(env)}
        if cwd is not None:
            options["cwd"] = os.fspath(cwd)
        file, folder = _connection_path(connection_file)
        manager.connection_file = str(file)
        if not encryption and _takes_ipc(spec, provisioner) and folder.takes_sockets():
            manager.transport, manager.ip = "ipc", folder.ip
        plan = cls(manager, provisioner, folder, contextlib.ExitStack(), options)
        if manager.transport == "tcp" and provisioner is LocalProvisioner and CAN_RESERVE:
            try:
                plan._reserve_ports()
            except BaseException:
                plan.clean()
                raise
        return plan

    def _reserve_ports(self) -> None:
        self.manager.cache_ports = False  # else it chooses others
        for name in port_names:
            port = self.ports.enter_context(reserved_port(self.manager.ip)).getsockname()[1]
            setattr(self.manager, name, port)

    def clean(self) -> None:
        """Remove what the manager does not, after the kernel's end."""
        self.ports.close()
        self.folder.remove()


def environment(
    more: Mapping[str, str], inherited: bool | Collection[str] = True
) -> dict[str, str]:
    """Return the variables of a kernel: those that it inherits from this process, and more."""
    found = {**_inherited(inherited), **more}
    # Without this, the debugger warns about frozen modules, even if no debugger is used.
    found.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    return found


async def spawned(
    kernel_process: KernelProcess,
    options: dict[str, Any],
    encryption: bool,
    insecure: frozenset[str],
) -> ZmqTransport:
    """Have the manager start its kernel, and return a transport to it, which is not open.

    A failure or a cancel ends the kernel again.
    """
    manager = kernel_process.manager
    name = manager.kernel_name
    try:
        # If this were cancelled half-way, the manager would not know the process that it started.
        await finish(manager.start_kernel(**options))
        # The provisioner decides where the kernel runs, so the connection is known only now.
        info = checked(manager.get_connection_info(), f"the kernel {name!r}", insecure)
        if encryption and not info.get("curve_publickey"):
            kind = type(manager.provisioner).__name__
            raise NotSupported(f"{kind} started {name!r} without CURVE keys")
        return ZmqTransport(
            info, connection_file=manager.connection_file, kernel_process=kernel_process, owned=True
        )
    except BaseException as error:
        with noted_on(error):
            await finish(kernel_process.end(polite=False))
        raise


def _inherited(which: bool | Collection[str]) -> dict[str, str]:
    """Return the variables of this process that a kernel gets.

    Raises:
        TypeError: ``which`` is neither a bool nor a list of names.
    """
    if which is True:
        return dict(os.environ)
    if isinstance(which, str) or not (which is False or isinstance(which, Collection)):
        raise TypeError(f"inherit_env= takes True, False or a list of names, not {which!r}")
    names = {*ALWAYS_INHERITED, *(which or ())}
    return {name: value for name, value in os.environ.items() if name in names}


def kernelspec(manager: AsyncKernelManager) -> KernelSpec:
    """Return the kernelspec to start.

    Raises:
        KernelNotFound: there is none, its provisioner is not installed, or a folder in which
            kernelspecs may be cannot be made.
    """
    try:
        spec = manager.kernel_spec
    except NoSuchKernel:
        name, found = manager.kernel_name, KernelSpecManager().find_kernel_specs()
        if name in found:
            wanted = _provisioner_name(KernelSpec.from_resource_dir(found[name]))
            raise KernelNotFound(
                f"the kernel {name!r} needs the provisioner {wanted!r}, which is not installed; "
                "pip install the package that contains it"
            ) from None
        known = ", ".join(sorted(found)) or "none"
        raise KernelNotFound(
            f"no kernel named {name!r} is installed; installed are: {known}"
        ) from None
    except OSError as error:  # jupyter_client has IPython make its folder, in which it looks, too
        raise KernelNotFound(
            f"no kernel was started, because a folder cannot be made: {error}; set IPYTHONDIR and "
            "JUPYTER_RUNTIME_DIR to folders where this user can write"
        ) from error
    assert spec is not None
    return spec


def _provisioner(spec: KernelSpec) -> type[KernelProvisionerBase]:
    """Return the class that starts this kernel: jupyter_client's own, or an entry point's."""
    known = KernelProvisionerFactory.instance().provisioners
    found: type[KernelProvisionerBase] = known[_provisioner_name(spec)].load()
    return found


def _provisioner_name(spec: KernelSpec) -> str:
    default = KernelProvisionerFactory.instance().default_provisioner_name
    return str(spec.metadata.get("kernel_provisioner", {}).get("provisioner_name", default))


def _takes_ipc(spec: KernelSpec, provisioner: type[KernelProvisionerBase]) -> bool:
    """Return whether Unix sockets are sure to work, as not every kernel supports them.

    xeus-python ends at once with them. A provisioner may start the kernel on a machine that does
    not have the folder of the sockets.
    """
    ipykernel = any("ipykernel" in word for word in spec.argv)
    return sys.platform != "win32" and ipykernel and provisioner is LocalProvisioner


def encrypt(manager: AsyncKernelManager) -> None:
    """Have the manager make CURVE keys, which it writes into the connection file and keeps.

    Raises:
        NotSupported: jupyter_client, pyzmq or the kernelspec does not support CURVE.
    """
    if not manager.has_trait("transport_encryption"):
        raise NotSupported(
            "this jupyter_client cannot encrypt; pip install 'jupyter_client>=8.9' in the "
            "environment of this program"
        )
    try:
        manager.transport_encryption = "required"
    except TraitError as error:  # this pyzmq was built without it
        raise NotSupported(str(error)) from None
    spec = manager.kernel_spec
    if spec is None or "curve" not in str(spec.metadata.get("supported_encryption", "")).lower():
        raise NotSupported(
            f"the kernelspec {manager.kernel_name!r} does not say that its kernel can encrypt; "
            "pip install 'ipykernel>=7.3' in the kernel's environment, and run python -m ipykernel "
            "install in it again if that command made the kernelspec"
        )


def _connection_path(wanted: str | os.PathLike[str] | None) -> tuple[Path, LaunchFolder]:
    """Return where the connection file goes, after a file could be written there, and its folder.

    What killed programs left there is removed.

    Raises:
        KernelNotFound: no file can be written in that folder, or the file is of a kernel that runs.
    """
    if wanted is not None:
        file = Path(os.path.abspath(wanted))
        what_to_do = "pass connection_file= in a folder where this user can write"
    else:
        file = Path(os.path.abspath(jupyter_runtime_dir())) / f"kernel-{uuid.uuid4().hex[:12]}.json"
        what_to_do = "set JUPYTER_RUNTIME_DIR to a folder where this user can write"
    probe = f"{file}.try"
    try:
        if wanted is None:
            os.makedirs(file.parent, mode=0o700, exist_ok=True)
        sweep(file.parent)
        folder = LaunchFolder(file)
        if is_of_running_kernel(file) or folder.has_rival():
            folder.remove()  # without its file, no program would find that kernel
            raise KernelNotFound(
                f"no kernel was started, because the kernel of the connection file {file} runs, or "
                "may run; stop that kernel, or choose another file"
            )
        # As jupyter_client writes the file itself, whose error would name neither folder nor
        # variable: on a disk that is full or read-only, or whose files keep no permissions
        # (RuntimeError).
        try:
            with secure_write(probe) as text:
                text.write(" " * WRITTEN)
        except BaseException:
            folder.remove()
            raise
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise KernelNotFound(
            f"no kernel was started, because its connection file cannot be written in "
            f"{file.parent} ({reason}); {what_to_do}"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            os.unlink(probe)
    return file, folder


def _log_file() -> Any:
    """Return an open file for what the kernel prints, or None; ``KernelProcess`` closes it."""
    try:
        return tempfile.TemporaryFile("ab+")
    except OSError:  # every folder for temporary files is read-only, as in some containers
        if sys.platform != "linux":
            return None
        import fcntl

        log = os.fdopen(os.memfd_create("bridgehead-log"), "ab+")
        # The kernel writes through a copy of this descriptor, and KernelProcess empties the file.
        fcntl.fcntl(log, fcntl.F_SETFL, os.O_APPEND)
        return log
