"""Kernels behind Jupyter servers: which server, with which token, and which kernel of it.

Rule: everything up to a transport that is ready to be talked to, as ``_kernels`` has it for
kernels that are reached directly. What would show the token to strangers is refused here,
before anything is sent.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import ssl
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit, urlunsplit

from jupyter_core.paths import jupyter_runtime_dir

from bridgehead._errors import BridgeError, InsecureConnection, KernelNotFound
from bridgehead._transports.addresses import is_loopback
from bridgehead._transports.tasks import finish

if TYPE_CHECKING:
    from bridgehead._transports.rest import Rest
    from bridgehead._transports.websocket import WebsocketTransport

Trusted = ssl.SSLContext | str | os.PathLike[str] | None  # a context, a file of authorities
EVERYWHERE = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "[::1]"}  # noqa: S104
GIVE_UP_WITHIN = 20.0  # s for a server to say which kernel it started, if nobody waits for it
PAGES = ("lab", "tree", "notebooks", "doc", "edit", "console", "api")  # of a server, in addresses
NOBODY = "00000000-0000-0000-0000-000000000000"  # an id as kernels have them, and none has
log = logging.getLogger("bridgehead")


@dataclass(frozen=True, slots=True)
class JupyterServer:
    """Where a server is, and what lets one in."""

    url: str  # ends with a slash
    token: str = field(repr=False)
    kernel_id: str | None = None  # where the address leads to one


async def connect(
    url: str | None,
    token: str | None,
    *,
    kernel_id: str | None,
    kernel_name: str | None,
    trusted: Trusted,
    insecure: frozenset[str],
    timeout: float,
) -> WebsocketTransport:
    """Connect to a kernel of a server, or start one there; failing or cancelling ends it again."""
    server = find(url, token)
    rest = _rest(server, trusted, insecure)
    wanted = kernel_id or server.kernel_id
    if wanted is not None:
        return await _opened(rest, lambda: _known(rest, wanted), timeout, owned=False)
    return await _opened(rest, lambda: rest.start(kernel_name), timeout, owned=True)


async def attach(url: str, *, insecure: frozenset[str], timeout: float) -> WebsocketTransport:
    """Connect to a kernel that a server has: the one in the address, or the one used last."""
    server = find(url, None)
    rest = _rest(server, None, insecure)
    wanted = server.kernel_id
    if wanted is not None:
        return await _opened(rest, lambda: _known(rest, wanted), timeout, owned=False)
    return await _opened(rest, lambda: _latest(rest), timeout, owned=False)


def _rest(
    server: JupyterServer,
    trusted: Trusted,
    insecure: frozenset[str],
) -> Rest:
    try:
        import websockets  # noqa: F401 - looked for before anything is opened

        from bridgehead._transports.rest import Rest
    except ImportError as error:
        raise ImportError(
            f"a kernel behind a server needs {error.name}: pip install 'bridgehead[server]'",
            name=error.name,
        ) from error
    context = _context(server.url, trusted)
    _check_secure(server.url, insecure)
    return Rest(server.url, _sendable(server.token), context)


def _sendable(token: str) -> str:
    """The token as a header may carry it; files that have one like to end with a line break."""
    token = token.strip()
    if not (token.isascii() and token.isprintable()):
        raise ValueError("the token has characters that no server would take")  # which, stays here
    return token


async def _known(rest: Rest, identity: str) -> str:
    """The id of a kernel that the server has."""
    if await rest.kernel(identity) is None:
        ids = [str(item.get("id")) for item in await rest.kernels()]
        listed = f"it has: {', '.join(ids)}" if ids else "it has none, or lists none"
        raise KernelNotFound(f"{rest.url} has no kernel {identity}; {listed}")
    return identity


async def _latest(rest: Rest) -> str:
    found = await rest.kernels()
    if not found:
        raise KernelNotFound(f"{rest.url} has no kernel, or lists none; connect() starts one")
    return str(max(found, key=lambda kernel: str(kernel.get("last_activity")))["id"])


async def _opened(
    rest: Rest, find_kernel: Callable[[], Awaitable[str]], timeout: float, *, owned: bool
) -> WebsocketTransport:
    from bridgehead._transports.websocket import WebsocketTransport

    transport = None
    found: asyncio.Future[str] | None = None
    try:
        async with asyncio.timeout(timeout):
            await rest.reach()
            # To its end: cancelled half-way, nobody would know of a kernel that was started.
            found = asyncio.ensure_future(find_kernel())
            identity = await asyncio.shield(found)
        transport = WebsocketTransport(rest, identity, owned=owned)
        await transport.open(timeout)
    except TimeoutError:
        await finish(_give_up(rest, found, owned))
        raise KernelNotFound(f"{rest.url} gave no kernel within {timeout:g} s") from None
    except BaseException:
        if transport is not None:
            await transport.aclose()
        else:
            await finish(_give_up(rest, found, owned))
        raise
    return transport


async def _give_up(rest: Rest, found: asyncio.Future[str] | None, owned: bool) -> None:
    try:
        if found is not None and owned:
            async with asyncio.timeout(GIVE_UP_WITHIN):
                await rest.end(await found)
        elif found is not None:
            found.cancel()
    except TimeoutError:
        log.warning("%s may have started a kernel that nobody wants any more", rest.url)
    except BridgeError:  # what went wrong is being told already
        pass
    finally:
        await rest.aclose()


def find(url: str | None, token: str | None) -> JupyterServer:
    """The server that an address means, as a browser shows it, or that runs here if it is None.

    Its token is the one that is given, or stands in the address; else that of a server which runs
    here and has this address, else ``JUPYTER_TOKEN`` or what the file ``JUPYTER_TOKEN_FILE`` has.

    Raises:
        KernelNotFound: none, or more than one, runs here.
        ValueError: it is no http address.
    """
    here = list(running())
    if url is None:
        if len(here) != 1:
            listed = ", ".join(server.url for server in here) or "none"
            raise KernelNotFound(
                f"connect() without an address takes the one server that runs here; "
                f"{jupyter_runtime_dir()} tells of: {listed}"
            )
        return JupyterServer(here[0].url, here[0].token if token is None else token)
    found = _parsed(url)
    if token is not None:
        return replace(found, token=token)
    if found.token:
        return found
    for server in here:
        if _same(server.url, found.url):
            return replace(found, token=server.token)
    return replace(found, token=_token_of_environment())


def runs(pid: object) -> bool:
    """Whether a process with this number exists; always true where asking would end it."""
    if os.name != "posix" or type(pid) is not int:  # on Windows, a signal 0 is a real one
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's process
        pass
    return True


def running() -> Iterator[JupyterServer]:
    """The servers of this user's on this machine, as ``jupyter server list`` finds them."""
    for file in sorted(Path(jupyter_runtime_dir()).glob("jpserver-*.json")):
        try:
            told = json.loads(file.read_text("utf-8"))
            if runs(told["pid"]) and not told.get("sock"):
                yield JupyterServer(_parsed(_own(told)).url, str(told.get("token") or ""))
        except (
            OSError,
            ArithmeticError,
            LookupError,
            RuntimeError,
            TypeError,
            ValueError,
            AttributeError,
        ):
            continue  # it has just ended, or the file is none of a server's


async def told(server: JupyterServer) -> tuple[list[Mapping[str, Any]], dict[str, str]]:
    """A server's kernels, as it lists them, and by their ids what each was started for.

    Raises what reaching it raises, and ``ImportError`` where httpx or websockets are missing.
    """
    async with _rest(server, None, frozenset()) as rest:
        await rest.reach()
        kernels, sessions = await asyncio.gather(rest.kernels(), rest.sessions())
        if not kernels:  # a server that refuses the token lists none, and says so only here
            await rest.kernel(NOBODY)
    purposes = {}
    for session in sessions:
        kernel = session.get("kernel")
        if isinstance(kernel, dict):
            purposes[str(kernel.get("id"))] = str(session.get("path") or session.get("name") or "")
    return kernels, purposes


def seconds(moment: object) -> float:
    """Since 1970, of a moment as a server writes it; 0 for what is none."""
    try:
        return datetime.fromisoformat(str(moment)).timestamp()
    except ValueError:
        return 0.0


def _own(told: dict[str, Any]) -> str:
    """The address of a server that runs here.

    One that listens everywhere tells of its machine's name, as others would reach it.
    """
    host = EVERYWHERE.get(str(told.get("hostname")))
    if host is None or told.get("secure"):  # a certificate is for a name
        return str(told["url"])
    return f"http://{host}:{told['port']}{told['base_url']}"


def _parsed(url: str) -> JupyterServer:
    """An address and its token, without the page that a browser was at."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        begin = f"{parts.scheme}://{parts.hostname or ''}"  # behind it, a token may stand
        raise ValueError(f"{begin} is no address of a server; it begins with http:// or https://")
    if parts.username or parts.password:
        raise ValueError("a server's address has no user and password in it; pass token=")
    path = parts.path.split("/")
    at = next((at for at, step in enumerate(path) if step in PAGES), len(path))
    base, page = "/".join(path[:at]).rstrip("/") + "/", path[at:]
    kernel_id = page[2] if page[:2] == ["api", "kernels"] and len(page) > 2 else None
    token = parse_qs(parts.query).get("token", [""])[0]
    return JupyterServer(
        urlunsplit((parts.scheme, parts.netloc, base, "", "")), token, kernel_id or None
    )


def _same(one: str, other: str) -> bool:
    """Whether two addresses lead to the same server: this machine has more than one name."""
    first, second = urlsplit(one), urlsplit(other)
    hosts = is_loopback(first.hostname) and is_loopback(second.hostname)
    same = hosts or first.hostname == second.hostname
    return same and (first.port, first.path) == (second.port, second.path)


def _token_of_environment() -> str:
    file = os.environ.get("JUPYTER_TOKEN_FILE")
    if "JUPYTER_TOKEN" not in os.environ and file:
        return Path(file).read_text("utf-8").strip()
    return os.environ.get("JUPYTER_TOKEN", "")


def _context(url: str, trusted: Trusted) -> ssl.SSLContext | None:
    if not url.startswith("https"):
        if trusted is not None:
            raise ValueError(f"ssl= is for https://, and the address is {url}")
        return None
    if isinstance(trusted, ssl.SSLContext):
        return trusted
    try:
        return ssl.create_default_context(cafile=None if trusted is None else os.fspath(trusted))
    except (OSError, ssl.SSLError) as error:
        raise ValueError(f"ssl= names no file of certificates: {trusted}: {error}") from error


def _check_secure(url: str, insecure: frozenset[str]) -> None:
    """Raises ``InsecureConnection`` where token and data would cross a network in the clear."""
    parts = urlsplit(url)
    if parts.scheme == "https" or is_loopback(parts.hostname) or "plain-tcp" in insecure:
        return
    raise InsecureConnection(
        f"{url} leads over plain http to another machine, where token and data can be read on "
        "the way (take https://, or forward the port with SSH to 127.0.0.1); "
        "insecure=['plain-tcp'] would allow it"
    )
