"""The constructors of a bridge, and how it is closed.

Rule: each constructor returns an ``Opening``, which is awaitable and an async context manager, as
connections of other libraries are. Errors in the arguments are raised before anything is started.
"""

from __future__ import annotations

import os
import ssl as tls
import time
import warnings
from collections.abc import Awaitable, Callable, Collection, Mapping
from types import TracebackType
from typing import Any, TypeVar

from bridgehead._bridge.opening import Opening, OpenOptions
from bridgehead._connection.abandoned_bridge import Abandoned
from bridgehead._connection.call import Deadline
from bridgehead._connection.connection import Connection
from bridgehead._connection.trust import Trust, TrustName
from bridgehead._kernels import launch, local
from bridgehead._kernels.discovery import DiscoveredKernel
from bridgehead._kernels.security import Insecurity, allowances
from bridgehead._lanes.handshake import LaneName
from bridgehead._transports.addresses import is_of_server
from bridgehead._transports.base import Transport
from bridgehead._transports.tasks import finish, noted_on

B = TypeVar("B", bound="BridgeBase")


class BridgeBase:
    """The constructors and ``aclose`` of ``Bridge``, which adds the operations."""

    def __init__(self, connection: Connection) -> None:
        self._transport = connection.transport
        self._connection = connection

    @classmethod
    def launch(
        cls: type[B],
        kernel_name: str = "python3",
        *,
        connection_file: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
        inherit_env: bool | Collection[str] = True,
        limits: Mapping[str, int] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        encryption: bool = False,
        insecure: Insecurity | Collection[Insecurity] = (),
        lane: LaneName = "auto",
        pool: float = 0.5,
        trust: TrustName | None = None,
        allow: Collection[type | str] = (),
        timeout: float = 60.0,
    ) -> Opening[B]:
        """Start a kernel; closing the bridge ends it.

        The kernelspec's provisioner starts, interrupts and ends the kernel, wherever it runs. An
        ipykernel on this machine, under POSIX, gets Unix sockets in a private folder beside its
        connection file (TCP on loopback if the path is too long for a socket, or its file system
        supports none). Other kernels use the transport that they announce.

        Args:
            kernel_name: an installed kernelspec, as listed by ``jupyter kernelspec list``.
            connection_file: where to write the connection file, relative to the current
                folder; by default in Jupyter's runtime folder, where ``attach`` and ``jupyter
                console --existing`` find it. The file of a kernel that has ended is replaced.
            env: variables to add to the kernel's environment.
            inherit_env: what of this process's environment the kernel gets: all of it, or with
                False only PATH, HOME, LANG and TMPDIR (on Windows SYSTEMROOT, too), or with a list
                of names these as well.
            limits: ``{"memory": bytes of address space, "cpu": seconds}``, or one of them, on
                Linux: of the kernel's process, again after ``restart``, and of each process that
                it starts. Python raises ``MemoryError`` at the first, of which a kernel reserves up
                to 1 GB to start; the system ends the process at the second. They keep accidents
                small. They are no sandbox: a kernel can do whatever its user may do.
            cwd: the kernel's working directory; ``FileNotFoundError`` if it does not exist.
            encryption: use TCP on loopback with CURVE instead of Unix sockets. The connection file
                has the keys, for ``attach`` and every client that supports CURVE; ``jupyter
                console --existing`` of jupyter_client 8.10 does not support it, and gets no reply.
            insecure: as in ``attach``, for a kernel that a provisioner starts elsewhere.
            lane: ``"auto"`` takes ``"direct"`` if the kernel is a process of this user on this
                machine (Linux), else ``"buffers"`` if message buffers arrive at both ends, else
                ``"inline"``. Another lane than ``"auto"`` raises ``NotSupported`` if it is not
                available.
            pool: the largest share of the free memory, from 0 to 1, that objects in transit may
                take as shared memory, at either end; beyond it they cross as messages. Memory that
                was not used for half a minute is freed.
            trust: ``"pickle"`` opens whatever the kernel sends, which can run the kernel's code in
                this process. ``"data"`` opens scalars, containers, dates, arrays and tables, and
                raises ``UntrustedPayload`` for anything else. The default is ``"pickle"`` if the
                kernel proves in the handshake, over a Unix socket, that it is a process of this
                user on this machine; where no such proof is possible (not Linux), if this program
                started it. Else it is ``"data"``. ``info.why_trust`` has the reason.
            allow: your own classes, or their names, that ``"data"`` opens too.
            timeout: seconds until the kernel must answer.

        Raises:
            KernelNotFound: there is no such kernelspec, its provisioner is not installed, no
                connection file can be written, the one of ``connection_file`` is of a kernel that
                runs, or the kernel does not answer.
            KernelDied: the kernel ended at once; says what it last wrote.
            InsecureConnection: as in ``attach``.
            UnsupportedKernel: the kernel is not Python, or evaluates no ``user_expressions``.
            NotSupported: ``encryption``, and the kernel or this jupyter_client does not support it;
                or ``limits``, and this is not Linux, or a provisioner starts the kernel elsewhere,
                or by a command of its own.
            ValueError: ``limits`` has another key, or a value that is no whole number above 0, or
                is above the limit of this program.

        Cancelling ends a kernel that had started.

        Example::

            >>> async with Bridge.launch(env={"MODE": "test"}) as bridge:
            ...     print(await bridge.pull("__import__('os').environ['MODE']"))
            test
        """
        options = OpenOptions(lane, trust, allow, pool)
        permitted = allowances(insecure)
        return open_bridge(
            cls,
            options,
            timeout,
            lambda left: launch.launch(
                kernel_name,
                connection_file=connection_file,
                env=env,
                inherit_env=inherit_env,
                limits=limits,
                cwd=cwd,
                encryption=encryption,
                insecure=permitted,
                timeout=left,
            ),
        )

    @classmethod
    def attach(
        cls: type[B],
        existing: str | os.PathLike[str] | DiscoveredKernel | None = None,
        *,
        insecure: Insecurity | Collection[Insecurity] = (),
        lane: LaneName = "auto",
        pool: float = 0.5,
        trust: TrustName | None = None,
        allow: Collection[type | str] = (),
        timeout: float = 60.0,
    ) -> Opening[B]:
        """Connect to a running kernel; closing the bridge leaves it running.

        If other users can read the connection file, this warns once with
        ``InsecureConnectionWarning``.

        Args:
            existing: what ``jupyter console --existing`` takes: a connection file's path or
                name, a fragment of it, a glob, or None for the file used last; what names no
                folder is looked up in Jupyter's runtime folder first, then in the current one. A
                file of another user leads to a kernel that is not trusted. Or the name of a
                notebook that a Jupyter server of yours has open on this machine,
                ``"train.ipynb"``; a renamed notebook keeps its old name here. It may also be an
                address, with ``http://`` or with a port: of a kernel on a server, or of a server,
                for the kernel used last there; see ``connect``. Or one of ``bridgehead.kernels()``.
                In a kernel's own code, the kernel used last is another one.
            insecure: the weaknesses to accept: ``"empty-key"`` (everyone who can reach the kernel
                can run code in it), ``"plain-tcp"`` beyond this machine (everyone on the way can
                read everything), or both in a list.
            lane, pool, trust, allow: as in ``launch``.
            timeout: seconds; a kernel that runs a cell answers after it.

        Raises:
            KernelNotFound: no connection file matches, several match, or no kernel answers; or it
                is the kernel that runs this code, which can't answer while this code waits.
            InsecureConnection: the key is empty, or the file leads over plain TCP beyond this
                machine.
            NotSupported: the file has CURVE keys, which this jupyter_client does not support.
            UnsupportedKernel: as in ``launch``.
            ValueError: ``insecure`` is neither of the names.

        Example, of a kernel that another program started::

            >>> async with Bridge.attach(connection_file) as bridge:
            ...     await bridge.push(x=1)
            <Transfer x: ...>
        """
        options = OpenOptions(lane, trust, allow, pool)
        if isinstance(existing, DiscoveredKernel):
            existing = existing.where
        return open_bridge(cls, options, timeout, attaching(existing, insecure))

    @classmethod
    def connect(
        cls: type[B],
        url: str | None = None,
        token: str | None = None,
        *,
        kernel_id: str | None = None,
        kernel_name: str | None = None,
        headers: Mapping[str, str] | None = None,
        cookies: Mapping[str, str] | None = None,
        start_server: bool = False,
        ssl: tls.SSLContext | str | os.PathLike[str] | None = None,
        insecure: Insecurity | Collection[Insecurity] = (),
        lane: LaneName = "auto",
        trust: TrustName | None = None,
        allow: Collection[type | str] = (),
        timeout: float = 60.0,
    ) -> Opening[B]:
        """Connect to a kernel behind a Jupyter Server, a JupyterHub or a Kernel Gateway.

        Needs ``pip install 'bridgehead[server]'``. After a broken connection the bridge connects
        again and continues what was in transit; nothing runs twice. Closing the bridge ends a
        kernel that this call started, and leaves any other kernel running.

        A server of a JupyterHub that is stopped or starting is waited for, and so is a server in
        whose place a proxy answers 502, 503 or 504.

        Args:
            url: the server's address, as a browser shows it; by default the address of the only
                server on this machine, as listed by ``jupyter server list``. That of a JupyterHub
                has the user's name: ``https://hub/user/NAME/``.
            token: by default the token in the address, or that of the server on this machine with
                that address, else ``JUPYTER_TOKEN`` or the content of the file
                ``JUPYTER_TOKEN_FILE``. It is sent in a header.
            kernel_id: the id of a running kernel; without it a kernel is started.
            kernel_name: the kernelspec to start; by default the server's own default.
            headers: more headers of each request and for each websocket, for instance for a proxy
                that wants a login. They are as secret as the token: no log and no error has them.
            cookies: the same for cookies, for instance of a login in a browser.
            start_server: have the server of a JupyterHub started if it does not run. It goes on
                when the bridge is closed, and a timeout or a cancel does not stop its start.
            ssl: for https, the certificate file of the authority that signed the server's
                certificate, or an ``ssl.SSLContext``; by default what this machine trusts.
            insecure: ``"plain-tcp"`` accepts plain http beyond this machine.
            lane: ``"buffers"`` or ``"inline"``; ``"auto"`` takes the first one that works.
            trust: by default ``"data"``, wherever the server is; see ``launch``.
            allow: as in ``launch``.
            timeout: seconds for all of it, a server's start included.

        Raises:
            KernelNotFound: there is no server or no such kernel, or the server refuses the token;
                or a JupyterHub's server did not run in time, or could not be started.
            InsecureConnection: plain http beyond this machine, or a certificate that this machine
                does not trust.
            TransportError: the server cannot be reached.
            UnsupportedKernel: as in ``launch``.
            ImportError: httpx or websockets are not installed.

        Cancelling ends a kernel that had started.

        Example::

            >>> async with Bridge.connect(url, token) as bridge:
            ...     print(bridge.info.transport, bridge.info.trust)
            websocket data
        """
        if kernel_id is not None and kernel_name is not None:
            raise ValueError(
                "kernel_id names a running kernel, and kernel_name starts a new one; "
                "pass only one of them"
            )
        from bridgehead._kernels import jupyter_servers  # few programs have a server

        options = OpenOptions(lane, trust, allow, pool=0)
        permitted = allowances(insecure)
        return open_bridge(
            cls,
            options,
            timeout,
            lambda left: jupyter_servers.connect(
                url,
                token,
                kernel_id=kernel_id,
                kernel_name=kernel_name,
                headers=headers,
                cookies=cookies,
                start_server=start_server,
                trusted=ssl,
                insecure=permitted,
                timeout=left,
            ),
        )

    @classmethod
    def over(
        cls: type[B],
        client: Any,
        *,
        insecure: Insecurity | Collection[Insecurity] = (),
        lane: LaneName = "auto",
        pool: float = 0.5,
        trust: TrustName | None = None,
        allow: Collection[type | str] = (),
        timeout: float = 60.0,
    ) -> Opening[B]:
        """Connect to the kernel of your client or manager, or to an ipyparallel engine.

        The bridge opens its own sockets and session: the client stays usable beside it, and
        closing the bridge ends neither the client nor the kernel. With a manager, ``restart``
        works.

        ``Bridge.over(client[0])`` connects to an engine of an ipyparallel cluster. Requests cross
        by ipyparallel's own ``apply``, through the client and its schedulers, tunnels and keys.
        Interrupts, callbacks and the outcomes of async functions travel beside them, also while the
        engine works. The direct lane, ``now=True``, ``watch``, ``messages`` and ``restart`` are
        ``NotSupported`` there. The client itself unpickles what engines send: ``trust="data"``
        decides what ``pull`` and ``call`` open, and cannot prevent that.

        Args:
            client: an ``AsyncKernelClient``, an ``AsyncKernelManager``, or an ipyparallel view of
                one engine.
            insecure: as in ``attach``.
            lane, pool, trust, allow: as in ``launch``.
            timeout: seconds; an engine that runs a task answers after it.

        Raises:
            KernelNotFound: the manager's kernel is not running, there is no such engine, or the
                kernel does not answer.
            InsecureConnection: as in ``attach``.
            TypeError: ``client`` is none of these, is a view of several engines, or reaches its
                kernel without sockets, as an ``InProcessKernelManager`` does.

        Example, of a manager that runs a kernel already::

            >>> async with Bridge.over(manager) as bridge:
            ...     await bridge.push(x=1)
            <Transfer x: ...>
        """
        options = OpenOptions(lane, trust, allow, pool)
        permitted = allowances(insecure)
        return open_bridge(
            cls,
            options,
            timeout,
            lambda left: local.over(client, insecure=permitted, timeout=left),
        )

    @classmethod
    def loopback(
        cls: type[B],
        *,
        lane: LaneName = "auto",
        trust: TrustName | None = None,
        allow: Collection[type | str] = (),
    ) -> Opening[B]:
        """Run the remote part in this process, without a kernel, for tests.

        Everything except the process is real: frames, digests, lanes, errors. Cells are plain
        Python without magics or top-level ``await``, and cannot be interrupted.

        Args:
            lane: ``"buffers"``, which ``"auto"`` takes, or ``"inline"``.
            trust, allow: as in ``launch``.

        Example::

            >>> async with Bridge.loopback() as bridge:
            ...     await bridge.push(x=[1, 2])
            ...     print(await bridge.pull("sum(x)"))
            <Transfer x: ... bytes by buffers in ... s>
            3
        """
        from bridgehead._transports.loopback import LoopbackTransport  # only tests need it

        async def connect(left: float) -> Transport:
            return LoopbackTransport()

        return open_bridge(cls, OpenOptions(lane, trust, allow, pool=0), 60.0, connect)

    async def __aenter__(self: B) -> B:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with noted_on(error):
            await self.aclose()

    async def aclose(self) -> None:
        """Close the bridge: end the kernel if this bridge started it, else only the connection.

        Pending operations raise ``BridgeClosed``; those that were sent may have run. Everything is
        released, whatever fails; called again, ``aclose`` tries again what failed. It may be called
        from any task of the loop. If it is cancelled, the cancel takes effect when the bridge is
        closed completely. At the end of ``async with``, an error of the block is raised, and what
        failed in closing is a note on it. A bridge that is dropped unclosed is closed, too, with a
        ``ResourceWarning``.

        Raises:
            TransportError: the server did not end the kernel that this bridge started. If the
                server cannot be reached, a warning is logged instead.

        >>> await bridge.aclose()
        >>> bridge.state
        'closed'
        """
        self._connection.check_closer()
        await finish(self._connection.aclose())

    def __del__(self) -> None:
        connection: Connection | None = getattr(self, "_connection", None)
        if connection is None or connection.transport.closing_began:
            return
        if connection.process != os.getpid():  # a forked child drops its copy
            return
        try:
            warnings.warn(
                f"{self!r} was dropped and not closed; use 'async with', or await aclose()",
                ResourceWarning,
                stacklevel=2,
            )
        finally:  # warnings may be errors
            Abandoned(connection).close()

    @property
    def _is_released(self) -> bool:
        """Whether ``aclose`` has nothing to try again."""
        return self._transport.is_released


def attaching(
    existing: str | os.PathLike[str] | None, insecure: Insecurity | Collection[Insecurity]
) -> Callable[[float], Awaitable[Transport]]:
    """Return a function that connects as ``attach`` does, to a server or by a file."""
    permitted = allowances(insecure)

    async def connect(left: float) -> Transport:
        if isinstance(existing, str) and is_of_server(existing):
            from bridgehead._kernels import jupyter_servers

            return await jupyter_servers.attach(existing, insecure=permitted, timeout=left)
        return await local.attach(existing, insecure=permitted, timeout=left)

    return connect


def open_bridge(
    kind: type[B],
    options: OpenOptions,
    timeout: float,
    connect: Callable[[float], Awaitable[Transport]],
    *,
    handshake_timeout: float | None = None,
) -> Opening[B]:
    """Return an ``Opening`` that connects, does the handshake, and gives the bridge.

    Args:
        kind: the class of the bridge.
        options: the options that all constructors share.
        timeout: seconds for all of it.
        connect: opens the transport; takes the seconds that it may need.
        handshake_timeout: seconds, from the start, until the handshake must end, instead of
            ``timeout``. A kernel that has answered may still run a cell for hours.
    """

    async def make() -> B:
        started = time.monotonic()
        transport = await connect(timeout)
        limit = timeout if handshake_timeout is None else handshake_timeout
        try:
            trust = Trust(options.trust, options.allow)
            connection = Connection(transport, options.lane, trust, options.pool)
            left = max(0.0, limit - (time.monotonic() - started))
            try:
                async with Deadline(left, "opening", transport, asked=limit):
                    await connection.remote.install()
            except TimeoutError:
                await transport.introduced()  # if the kernel never answered, raise that
                raise
        except BaseException as error:
            with noted_on(error):
                await transport.aclose()
            raise
        return kind(connection)

    return Opening(make, timeout, kind.__name__)
