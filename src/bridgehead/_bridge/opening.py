"""How a bridge is opened, and closed.

Rule: launched, attached, lent or looped back; each gives an ``Opening``, awaitable and an async
context manager, as connections are elsewhere. What is wrong with the arguments is told before
anything is started.
"""

from __future__ import annotations

import os
import ssl as tls
import time
from collections.abc import Awaitable, Callable, Collection, Generator, Mapping
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from bridgehead._connection.calls import Deadline, check_seconds
from bridgehead._connection.connection import Connection
from bridgehead._connection.trust import Trust, TrustName, allowed, check_trust
from bridgehead._kernels import jupyter_servers as _servers
from bridgehead._kernels import launch, local
from bridgehead._kernels.security import Insecurity, allowances
from bridgehead._lanes.handshake import LaneName, check_lane
from bridgehead._transports.base import Transport
from bridgehead._transports.tasks import finish

B = TypeVar("B", bound="BridgeBase")
C = TypeVar("C", bound="Closing")


class Closing(Protocol):
    """What is opened, and closed again."""

    async def aclose(self) -> None: ...


class BridgeBase:
    """What is opened onto one kernel; ``Bridge`` says what it can do then."""

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
        cwd: str | os.PathLike[str] | None = None,
        encryption: bool = False,
        insecure: Insecurity | Collection[Insecurity] = (),
        lane: LaneName = "auto",
        pool: float = 0.5,
        trust: TrustName | None = None,
        allow: Collection[type | str] = (),
        timeout: float = 60.0,
    ) -> Opening[B]:
        """Start a kernel of one's own; closing the bridge ends it.

        The kernelspec's provisioner starts it, interrupts it and ends it, wherever it may run. An
        ipykernel on this machine, under POSIX, has Unix sockets beside its connection file (TCP on
        loopback where that path is too long for a socket); others have what they say themselves.

        Args:
            kernel_name: an installed kernelspec, as ``jupyter kernelspec list`` shows them.
            connection_file: where to write the connection file, relative to the current
                folder; by default in Jupyter's runtime folder, where ``attach`` and ``jupyter
                console --existing`` find it.
            env: variables to add to this process's environment.
            cwd: the kernel's working directory; ``FileNotFoundError`` if there is none.
            encryption: TCP on loopback with CURVE instead of Unix sockets. The connection file
                carries the keys, for ``attach`` and every client that knows CURVE; ``jupyter
                console --existing`` of jupyter_client 8.10 doesn't, and gets no answer.
            insecure: as in ``attach``, for a kernel that a provisioner starts elsewhere.
            lane: ``"auto"`` takes ``"direct"`` where the kernel is a process of this user's on
                this machine (Linux), else ``"buffers"`` if they arrive on both sides, else
                ``"inline"``. A lane that is named and can't be had is ``NotSupported``.
            pool: share of the memory that is free, from 0 to 1, that objects on their way may
                take at most as shared memory, on either side; beyond it they cross as messages.
                It is given back when it was not used for half a minute.
            trust: ``"pickle"`` opens whatever the kernel sends, which can run code of its own
                here; ``"data"`` opens scalars, containers, dates, arrays and tables, and
                raises ``UntrustedPayload`` for anything else. By default a kernel of this
                user's on this machine is trusted, any other is not.
            allow: classes of yours, or their names, that ``"data"`` opens too.
            timeout: seconds until the kernel must answer.

        Raises:
            KernelNotFound: no such kernelspec, or its provisioner is not installed, or the kernel
                does not answer.
            KernelDied: it ended at once; says what it last wrote.
            InsecureConnection: as in ``attach``.
            UnsupportedKernel: it isn't Python, or evaluates no ``user_expressions``.
            NotSupported: ``encryption``, and the kernel or this jupyter_client has none.

        Cancelling ends a kernel that had started.

        Example::

            >>> async with Bridge.launch(env={"MODE": "test"}) as bridge:
            ...     print(await bridge.pull("__import__('os').environ['MODE']"))
            test
        """
        how = OpenOptions(lane, trust, allow, pool)
        permitted = allowances(insecure)
        return open_bridge(
            cls,
            how,
            timeout,
            lambda left: launch.launch(
                kernel_name,
                connection_file=connection_file,
                env=env,
                cwd=cwd,
                encryption=encryption,
                insecure=permitted,
                timeout=left,
            ),
        )

    @classmethod
    def attach(
        cls: type[B],
        existing: str | os.PathLike[str] | None = None,
        *,
        insecure: Insecurity | Collection[Insecurity] = (),
        lane: LaneName = "auto",
        pool: float = 0.5,
        trust: TrustName | None = None,
        allow: Collection[type | str] = (),
        timeout: float = 60.0,
    ) -> Opening[B]:
        """Connect to a running kernel; closing leaves it running.

        Warns once, as ``InsecureConnectionWarning``, of a connection file that others can read.

        Args:
            existing: what ``jupyter console --existing`` takes: a connection file's path or
                name, a fragment of it, a glob, or None for the one used last. Of a server's
                address, which begins with ``http``, the kernel that is in it, or the one used
                last there; see ``connect``.
            insecure: what to put up with: ``"empty-key"`` (whoever reaches the kernel can run
                code in it), ``"plain-tcp"`` beyond this machine (whoever is on the way can
                read everything), or both in a list.
            lane, pool, trust, allow: as in ``launch``.
            timeout: seconds; a kernel in the middle of a cell answers after it.

        Raises:
            KernelNotFound: none or several match, or nothing answers there.
            InsecureConnection: an empty key, or plain TCP beyond this machine.
            NotSupported: the file has CURVE keys, and this jupyter_client knows none.
            UnsupportedKernel: as in ``launch``.
            ValueError: an ``insecure`` that is neither name.

        Example, of a kernel that another program started::

            >>> async with Bridge.attach(connection_file) as bridge:
            ...     await bridge.push(x=1)
            <Transfer x: ...>
        """
        how = OpenOptions(lane, trust, allow, pool)
        return open_bridge(cls, how, timeout, attaching(existing, insecure))

    @classmethod
    def connect(
        cls: type[B],
        url: str | None = None,
        token: str | None = None,
        *,
        kernel_id: str | None = None,
        kernel_name: str | None = None,
        ssl: tls.SSLContext | str | os.PathLike[str] | None = None,
        insecure: Insecurity | Collection[Insecurity] = (),
        lane: LaneName = "auto",
        trust: TrustName | None = None,
        allow: Collection[type | str] = (),
        timeout: float = 60.0,
    ) -> Opening[B]:
        """Connect to a kernel behind a Jupyter Server or a Kernel Gateway.

        Needs ``pip install 'bridgehead[server]'``. A connection that breaks is made again, and
        what was on its way goes on; nothing is done twice. A kernel that this starts is ended
        when the bridge is closed, any other is left running.

        Args:
            url: the server's, as a browser shows it; by default that of the one server which
                runs here, as ``jupyter server list`` finds it.
            token: by default the one in the address, or of the server that runs here at that
                address, else ``JUPYTER_TOKEN`` or what the file ``JUPYTER_TOKEN_FILE`` has.
                It crosses in a header.
            kernel_id: of a running kernel; else one is started.
            kernel_name: the kernelspec to start; by default the server's own default.
            ssl: for https, the file of the authority that signed the server's certificate, or an
                ``ssl.SSLContext``; by default what this machine trusts.
            insecure: ``"plain-tcp"`` for plain http beyond this machine.
            lane: ``"buffers"`` or ``"inline"``; ``"auto"`` takes the first that passes.
            trust: ``"data"`` by default, wherever the server is; see ``launch``.
            allow: as in ``launch``.
            timeout: seconds.

        Raises:
            KernelNotFound: no server, no such kernel, or the token is refused.
            InsecureConnection: plain http beyond this machine, or a certificate that nobody
                here trusts.
            TransportError: the server can't be reached.
            UnsupportedKernel: as in ``launch``.
            ImportError: httpx or websockets are not installed.

        Cancelling ends a kernel that had started.

        Example::

            >>> async with Bridge.connect(url, token) as bridge:
            ...     print(bridge.info.transport, bridge.info.trust)
            websocket data
        """
        if kernel_id is not None and kernel_name is not None:
            raise ValueError("kernel_id is of a running kernel, kernel_name starts one; say one")
        how = OpenOptions(lane, trust, allow, pool=0)
        permitted = allowances(insecure)
        return open_bridge(
            cls,
            how,
            timeout,
            lambda left: _servers.connect(
                url,
                token,
                kernel_id=kernel_id,
                kernel_name=kernel_name,
                trusted=ssl,
                insecure=permitted,
                timeout=left,
            ),
        )

    @classmethod
    def over(
        cls: type[B],
        lender: Any,
        *,
        insecure: Insecurity | Collection[Insecurity] = (),
        lane: LaneName = "auto",
        pool: float = 0.5,
        trust: TrustName | None = None,
        allow: Collection[type | str] = (),
        timeout: float = 60.0,
    ) -> Opening[B]:
        """Connect to the kernel of an AsyncKernelClient or AsyncKernelManager you own, or to an
        engine of an ipyparallel cluster, ``Bridge.over(client[0])``.

        The bridge opens sockets and a session of its own: the client stays usable beside it, and
        closing the bridge ends neither client nor kernel. With a manager, ``restart`` works.

        What goes to an engine crosses by ipyparallel's own ``apply``, through the client, its
        schedulers, tunnels and keys; without direct lane, ``now=True``, ``watch``, ``messages``
        and ``restart``, which are ``NotSupported``. That client itself unpickles what engines send:
        ``trust="data"`` is about what ``pull`` and ``call`` open, and keeps no engine from it.

        Args:
            lender: the client, the manager or the view.
            insecure: as in ``attach``.
            lane, pool, trust, allow: as in ``launch``.
            timeout: seconds; an engine in the middle of a task answers after it.

        Raises:
            KernelNotFound: the manager's kernel is not running; no such engine, or no answer.
            InsecureConnection: as in ``attach``.
            TypeError: it is nothing of these, or a view of several engines.

        Example, of a manager that runs a kernel already::

            >>> async with Bridge.over(manager) as bridge:
            ...     await bridge.push(x=1)
            <Transfer x: ...>
        """
        how = OpenOptions(lane, trust, allow, pool)
        permitted = allowances(insecure)
        return open_bridge(
            cls,
            how,
            timeout,
            lambda left: local.over(lender, insecure=permitted, timeout=left),
        )

    @classmethod
    def loopback(
        cls: type[B],
        *,
        lane: LaneName = "auto",
        trust: TrustName | None = None,
        allow: Collection[type | str] = (),
    ) -> Opening[B]:
        """No kernel: the real loader serving a namespace in this process, for tests.

        Everything but the process is real: frames, digests, lanes, errors. Cells are plain
        Python, without magics and top-level ``await``, and can't be interrupted.

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
        from bridgehead._transports.loopback import LoopbackTransport  # for tests alone

        async def connect(left: float) -> Transport:
            return LoopbackTransport()

        return open_bridge(cls, OpenOptions(lane, trust, allow, pool=0), 60.0, connect)

    async def __aenter__(self: B) -> B:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Leave: ends the kernel if ``launch`` started it, else only the connection.

        Whatever is pending raises ``BridgeClosed``. May be called again, and from any task of
        the loop; cancelling it waits until nothing is left behind.

        >>> await bridge.aclose()
        >>> bridge.state
        'closed'
        """
        self._connection.check_caller()
        await finish(self._connection.aclose())


class Opening(Generic[C]):
    """A bridge to be, or a fleet: ``await`` it, or enter it with ``async with``."""

    def __init__(self, make: Callable[[], Awaitable[C]], timeout: float, kind: str) -> None:
        check_seconds(timeout)
        self._make, self._kind = make, kind
        self._bridge: C | None = None

    def __repr__(self) -> str:
        return f"<{self._kind}, not open yet: await it, or enter it with async with>"

    if not TYPE_CHECKING:  # to a type checker both are mistakes, which it tells earlier

        def __getattr__(self, name):
            raise AttributeError(f"{self!r} has no {name!r} before")

        def __enter__(self):
            raise TypeError(f"{self!r}; SyncBridge is for a plain with")

        def __exit__(self, *exc_info): ...

    def __await__(self) -> Generator[Any, None, C]:
        return self._make().__await__()

    async def __aenter__(self) -> C:
        self._bridge = await self._make()
        return self._bridge

    async def __aexit__(self, *exc_info: object) -> None:
        if self._bridge is not None:
            await self._bridge.aclose()


class OpenOptions:
    """How a bridge is to be opened; what is wrong with it is told before anything is started."""

    def __init__(
        self,
        lane: LaneName = "auto",
        trust: TrustName | None = None,
        allow: Collection[type | str] = (),
        pool: float = 0.5,
    ) -> None:
        check_lane(lane)
        if not isinstance(pool, (int, float)) or not 0 <= pool <= 1:
            raise ValueError(f"pool is a share of the free memory, from 0 to 1, not {pool!r}")
        if trust is not None:
            check_trust(trust)
        self.lane, self.trust, self.allow, self.pool = lane, trust, allowed(allow), float(pool)


def attaching(
    existing: str | os.PathLike[str] | None, insecure: Insecurity | Collection[Insecurity]
) -> Callable[[float], Awaitable[Transport]]:
    """How ``attach`` connects: by a server's address, or by a connection file."""
    permitted = allowances(insecure)

    async def connect(left: float) -> Transport:
        if isinstance(existing, str) and existing.startswith(("http://", "https://")):
            return await _servers.attach(existing, insecure=permitted, timeout=left)
        return await local.attach(existing, insecure=permitted, timeout=left)

    return connect


def open_bridge(
    kind: type[B],
    how: OpenOptions,
    timeout: float,
    connect: Callable[[float], Awaitable[Transport]],
    *,
    handshake_timeout: float | None = None,
) -> Opening[B]:
    """Open a bridge over the transport that ``connect`` gives within the seconds it is told.

    What is left of ``timeout`` is for the handshake, unless ``handshake_timeout`` counts from the
    start instead: a kernel that answered may be in the middle of a cell for hours.
    """

    async def make() -> B:
        started = time.monotonic()
        transport = await connect(timeout)
        limit = timeout if handshake_timeout is None else handshake_timeout
        try:
            data = not transport.ours if how.trust is None else how.trust == "data"
            connection = Connection(transport, how.lane, Trust(data, how.allow), how.pool)
            left = max(0.0, limit - (time.monotonic() - started))
            async with Deadline(left, "opening", transport, asked=limit):
                await connection.remote.install()
        except BaseException:
            await transport.aclose()
            raise
        return kind(connection)

    return Opening(make, timeout, kind.__name__)
