"""Connect to kernels behind Jupyter servers.

Rule: which server, which token, and which kernel of the server, up to an open transport; ``local``
does the same for kernels without a server. A connection that would show the token to strangers is
refused before anything is sent. ``server_wait`` waits for a server that is starting.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, parse_qs, urlsplit, urlunsplit

from jupyter_core.paths import jupyter_runtime_dir

from bridgehead._errors import BridgeError, InsecureConnection, KernelNotFound, NotSent
from bridgehead._kernels.connection_file import not_itself, own_id, read
from bridgehead._kernels.listeners import listens
from bridgehead._protocol.formatting import line, short_list
from bridgehead._protocol.spelling import spelled
from bridgehead._transports.addresses import is_loopback
from bridgehead._transports.base import Transport
from bridgehead._transports.tasks import finish, noted_on

if TYPE_CHECKING:
    from bridgehead._transports.rest import Rest
    from bridgehead._transports.websocket import WebsocketTransport

TlsTrust = ssl.SSLContext | str | os.PathLike[str] | None  # a context, or a file of authorities
EVERYWHERE = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "[::1]"}  # noqa: S104
PAGES = ("lab", "tree", "notebooks", "doc", "edit", "console", "api")  # of a server, in addresses
# More of them, below ``user/NAME/``; elsewhere they may be the beginning of a server's path.
MORE_PAGES = ("consoles", "files", "nbclassic", "nbconvert", "proxy", "terminals", "view", "voila")
# Those that the path of a file follows, which may have a folder ``user``.
FILE_PAGES = {"tree", "notebooks", "edit", "consoles", "files", "nbconvert", "view", "voila"}
HUB_SERVER = re.compile(r"^(.*?)/user/[^/]+(?=/|$)")  # all of a path that is the user's server
# What a browser shows of a server of a JupyterHub that does not run.
HUB_PAGES = re.compile(r"^(.*?)/hub/(?:user|spawn|spawn-pending)/(?=[^/])")
UNUSED_ID = "00000000-0000-0000-0000-000000000000"  # has the form of a kernel id; no kernel has it
OWN_HEADERS = ("accept-encoding", "connection", "content-length", "cookie", "host", "upgrade")
log = logging.getLogger("bridgehead")


@dataclass(frozen=True, slots=True)
class JupyterServer:
    """The address of a server, and its token."""

    url: str  # ends with a slash
    token: str = field(repr=False)
    kernel_id: str | None = None  # if the address names a kernel


async def connect(
    url: str | None,
    token: str | None,
    *,
    kernel_id: str | None,
    kernel_name: str | None,
    headers: Mapping[str, str] | None,
    cookies: Mapping[str, str] | None,
    start_server: bool,
    trusted: TlsTrust,
    insecure: frozenset[str],
    timeout: float,
) -> WebsocketTransport:
    """Connect to a kernel of a server, or start one.

    A failure or a cancel ends a kernel that was started.
    """
    headers, cookies = _checked_headers(headers), _checked("cookies", cookies)
    if "authorization" in map(str.lower, headers):
        if token is not None:
            raise ValueError("token= and the header Authorization are the same; pass one of them")
        token = ""
    server = find(url, token)
    rest = _rest(server, trusted, insecure, headers, cookies)
    wanted = kernel_id or server.kernel_id
    if wanted is not None:
        return await _opened(rest, lambda: _known(rest, wanted), timeout, start=start_server)
    return await _opened(
        rest, lambda: rest.start(kernel_name), timeout, owned=True, start=start_server
    )


async def attach(url: str, *, insecure: frozenset[str], timeout: float) -> WebsocketTransport:
    """Connect to a running kernel of a server: the one in the address, or the one used last."""
    server = find(url, None)
    rest = _rest(server, None, insecure)
    wanted = server.kernel_id
    if wanted is not None:
        return await _opened(rest, lambda: _known(rest, wanted), timeout)
    return await _opened(rest, lambda: _latest(rest), timeout)


async def start(
    url: str,
    *,
    kernel_name: str | None,
    start_server: bool,
    insecure: frozenset[str],
    timeout: float,
) -> str:
    """Start a kernel that stays on a server, wait until it answers, and return its address.

    A failure or a cancel ends the kernel again.

    Raises:
        KernelNotFound: as ``connect`` does.
        ValueError: the address names a kernel; or ``start_server`` without a JupyterHub.
    """
    server = find(url, None)
    if server.kernel_id is not None:
        raise ValueError(f"the address names a kernel; to start another one, use {server.url}")
    rest = _rest(server, None, insecure)
    transport = await _opened(
        rest, lambda: rest.start(kernel_name), timeout, owned=True, start=start_server
    )
    transport.owned = False  # it stays
    await transport.aclose()
    return f"{rest.url}api/kernels/{transport.kernel_id}"


def _check_is_of_hub(rest: Rest) -> None:
    if rest.hub is None:
        raise ValueError(
            f"{spelled('start_server=')} is for a server of a JupyterHub; its address has the "
            f"user's name, as in https://hub/user/NAME/, and this one is {rest.url}"
        )


@contextlib.asynccontextmanager
async def addressed(url: str, *, insecure: frozenset[str]) -> AsyncIterator[tuple[Rest, str]]:
    """Yield the server of an address, and the id of the kernel that the address names.

    Raises:
        KernelNotFound: the address names no kernel, or the server has no such kernel.
        TransportError: the server cannot be reached.
    """
    server = find(url, None)
    if server.kernel_id is None:
        raise KernelNotFound(
            f"{server.url} names no kernel; 'bridgehead ls' shows addresses with …/api/kernels/ID"
        )
    async with _rest(server, None, insecure) as rest:
        await rest.reach()
        yield rest, await _known(rest, server.kernel_id)


def _rest(
    server: JupyterServer,
    trusted: TlsTrust,
    insecure: frozenset[str],
    headers: Mapping[str, str] | None = None,
    cookies: Mapping[str, str] | None = None,
) -> Rest:
    rest = import_libraries()
    context = _context(server.url, trusted)
    _check_secure(server.url, insecure)
    return rest(server.url, _sendable(server.token), context, headers, cookies)


def import_libraries() -> type[Rest]:
    """Import what a connection to a server needs, before anything is opened.

    Raises:
        ImportError: httpx or websockets are not installed.
    """
    try:
        import websockets  # noqa: F401 - the transport needs it

        from bridgehead._transports.rest import Rest
    except ImportError as error:
        raise ImportError(
            f"a kernel behind a server needs {error.name}: pip install 'bridgehead[server]'",
            name=error.name,
        ) from error
    return Rest


def _sendable(token: str) -> str:
    """Return the token as a header may carry it; token files often end with a line break."""
    token = token.strip()
    if not (token.isascii() and token.isprintable()):
        # Do not quote them: the token is secret.
        raise ValueError("the token has characters that no server accepts")
    return token


def _checked_headers(headers: Mapping[str, str] | None) -> dict[str, str]:
    checked = _checked("headers", headers)
    for name in checked:
        if name.lower() in OWN_HEADERS or name.lower().startswith("sec-websocket-"):
            raise ValueError(f"headers= cannot have {name}, which bridgehead sets itself")
    return checked


def _checked(what: str, pairs: Mapping[str, str] | None) -> dict[str, str]:
    """Return headers or cookies as they are sent. No error quotes a value, which may be secret."""
    if isinstance(pairs, str):
        raise TypeError(f"{what} must be a mapping of names to texts, not one text")
    checked = dict(pairs or {})
    for name, value in checked.items():
        if not isinstance(name, str) or not re.fullmatch(r"[!#$%&'*+.^_`|~\w-]+", name, re.ASCII):
            raise ValueError(f"{what}: {line(repr(name))} is not a name that a server accepts")
        if not isinstance(value, str):
            raise TypeError(f"{what}: the value of {name} is {type(value).__name__}, not a text")
        if not (value.isascii() and value.isprintable()) or (what == "cookies" and ";" in value):
            raise ValueError(f"{what}: the value of {name} has characters that no server accepts")
    return checked


async def _known(rest: Rest, identity: str) -> str:
    """Return the kernel's id, if the server has this kernel."""
    if identity == own_id():
        raise not_itself(line(identity))
    if await rest.kernel(identity) is None:
        ids = [str(item.get("id")) for item in await rest.kernels()]
        listed = f"it has: {short_list(ids, 400)}" if ids else "it has none, or lists none"
        raise KernelNotFound(f"{rest.url} has no kernel {line(identity)}; {listed}")
    return identity


async def _latest(rest: Rest) -> str:
    this = own_id()
    found = [kernel for kernel in await rest.kernels() if kernel.get("id") != this]
    if not found:
        other = "" if this is None else "other "
        raise KernelNotFound(
            f"{rest.url} has no {other}kernel, or lists none; {spelled('connect()')} starts one"
        )
    return str(max(found, key=lambda kernel: str(kernel.get("last_activity"))).get("id"))


async def _opened(
    rest: Rest,
    find_kernel: Callable[[], Awaitable[str]],
    timeout: float,
    *,
    owned: bool = False,
    start: bool = False,
) -> WebsocketTransport:
    from bridgehead._kernels.server_wait import until_it_answers
    from bridgehead._transports.websocket import WebsocketTransport

    if start:
        _check_is_of_hub(rest)
    transport = None
    found: asyncio.Future[str] | None = None
    until = time.monotonic() + timeout
    try:
        await until_it_answers(rest, timeout, start=start)
        async with asyncio.timeout(until - time.monotonic()):
            # If this were cancelled half-way, a started kernel would stay unknown and never end.
            found = asyncio.ensure_future(find_kernel())
            identity = await asyncio.shield(found)
        transport = WebsocketTransport(rest, identity, owned=owned)
        await transport.open(max(0.0, until - time.monotonic()), asked=timeout)
    except TimeoutError:
        await finish(_give_up(rest, found, owned))
        raise KernelNotFound(f"{rest.url} provided no kernel within {timeout:g} s") from None
    except BaseException as error:
        with noted_on(error):
            if transport is not None:
                await transport.aclose()
            else:
                await finish(_give_up(rest, found, owned))
        raise
    return transport


async def _give_up(rest: Rest, found: asyncio.Future[str] | None, owned: bool) -> None:
    try:
        if found is not None and owned:
            async with asyncio.timeout(Transport.timings.start_cancelled):
                try:
                    started = await found
                except NotSent:  # the server refused to start one
                    return
                await rest.end(started)
        elif found is not None:
            found.cancel()
    except (TimeoutError, BridgeError) as error:  # the caller raises the first error
        log.warning("%s may have started a kernel that is no longer needed: %s", rest.url, error)
    finally:
        await rest.aclose()


def find(url: str | None, token: str | None) -> JupyterServer:
    """Return the server at an address, as a browser shows it; without one, the one running here.

    The token is the argument, or the one in the address; else that of a server with this address
    that runs on this machine, else ``JUPYTER_TOKEN`` or the content of the file
    ``JUPYTER_TOKEN_FILE``.

    Raises:
        KernelNotFound: no server runs on this machine, or more than one.
        ValueError: this is not an http address.
    """
    running_here = list(running())
    if url is None:
        if len(running_here) != 1:
            listed = ", ".join(server.url for server in running_here) or "none"
            raise KernelNotFound(
                "connect() without an address needs exactly one server that runs on this machine; "
                f"{jupyter_runtime_dir()} lists: {listed}"
            )
        server = running_here[0]
        return JupyterServer(server.url, server.token if token is None else token)
    found = _parsed(url)
    if token is not None:
        return replace(found, token=token)
    if found.token:
        return found
    for server in running_here:
        if _same(server.url, found.url):
            return replace(found, token=server.token)
    return replace(found, token=_token_of_environment())


def runs(pid: object) -> bool:
    """Return whether a process with this id exists; always true on Windows."""
    if os.name != "posix" or type(pid) is not int:  # on Windows, signal 0 would end the process
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's process
        pass
    return True


def running() -> Iterator[JupyterServer]:
    """Yield this user's servers on this machine, as ``jupyter server list`` finds them.

    The token of one is empty if the process in its file does not listen on the port in its file.
    """
    for file in sorted(Path(jupyter_runtime_dir()).glob("jpserver-*.json")):
        try:
            content = read(file, unnoticed=True)
            info = content.info
            if content.is_own and runs(info["pid"]) and not info.get("sock"):
                url = _parsed(_own(info)).url
                # A server that was killed leaves its file, and another program, of another user,
                # may have its port or its pid now.
                known = listens(info["pid"], _port(url))
                yield JupyterServer(url, str(info.get("token") or "") if known else "")
        except (
            OSError,
            ArithmeticError,
            LookupError,
            RuntimeError,
            TypeError,
            ValueError,
            AttributeError,
        ):
            continue  # the server has just ended, or this is not the file of a server


async def list_kernels(
    server: JupyterServer,
) -> tuple[list[Mapping[str, Any]], dict[str, str]]:
    """Return the kernels that a server lists, and what each was started for, by kernel id.

    Raises the errors of the connection to the server, and ``ImportError`` if httpx or websockets
    are not installed.
    """
    async with _rest(server, None, frozenset()) as rest:
        await rest.reach()
        kernels, sessions = await asyncio.gather(rest.kernels(), rest.sessions())
        if not kernels:  # a server that refuses the token lists none; this request raises then
            await rest.kernel(UNUSED_ID)
    purposes = {}
    for session in sessions:
        kernel = session.get("kernel")
        if isinstance(kernel, dict):
            purposes[str(kernel.get("id"))] = str(session.get("path") or session.get("name") or "")
    return kernels, purposes


def seconds(moment: object) -> float:
    """Return the seconds since 1970 of a time as servers write it; 0 if it is not a time."""
    try:
        return datetime.fromisoformat(str(moment)).timestamp()
    except ValueError:
        return 0.0


def _own(info: dict[str, Any]) -> str:
    """Return the address of a server that runs on this machine.

    A server that listens on all interfaces reports the machine's name, which may not be loopback.
    """
    host = EVERYWHERE.get(str(info.get("hostname")))
    if host is None or info.get("secure"):  # a certificate is for a name
        return str(info["url"])
    return f"http://{host}:{info['port']}{info['base_url']}"


def _parsed(url: str) -> JupyterServer:
    """Split an address into server, token and kernel id; the page in a browser is dropped.

    Raises:
        ValueError: it is no address of a server. The message quotes nothing that may be a token.
    """
    parts = _split(url.strip())
    if parts is None:  # raised here, or the error would have the library's one as its context
        raise ValueError("this is not the address of a server; use http://host:port/?token=…")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(
            f"{parts.scheme}:// is not the address of a server; use http:// or https://"
        )
    if "token=" in parts.path.lower():
        raise ValueError(f"the token in the address follows no '?'; pass {spelled('token=')}")
    if parts.username is not None or parts.password is not None:
        raise ValueError(
            f"the address of the server contains a user or password; pass {spelled('token=')}"
        )
    base, page = _server_and_page(HUB_PAGES.sub(r"\1/user/", parts.path, count=1))
    kernel_id = page[2] if page[:2] == ["api", "kernels"] and len(page) > 2 else None
    token = parse_qs(parts.query).get("token", [""])[0]
    return JupyterServer(
        urlunsplit((parts.scheme, parts.netloc, base, "", "")), token, kernel_id or None
    )


def _server_and_page(path: str) -> tuple[str, list[str]]:
    """Split a path into that of the server, and the steps of the page behind it.

    A Hub, or a server, may itself be below a path. Of one of a Hub, the first step behind the user
    that is no page is taken for the name of a server, and only the Hub knows whether it is one.
    """
    found = HUB_SERVER.match(path)
    if found is not None:
        rest = path[found.end() :]
        if rest == "/" or FILE_PAGES.isdisjoint(found[1].split("/")):
            base, page = found[0], rest.strip("/").split("/")
            if page[0] not in ("", *PAGES, *MORE_PAGES):
                base += f"/{page.pop(0)}"
            return f"{base}/", page
    steps = path.split("/")
    at = next((at for at, step in enumerate(steps) if step in PAGES), len(steps))
    return "/".join(steps[:at]).rstrip("/") + "/", steps[at:]


def _split(url: str) -> SplitResult | None:
    """Return the parts of an address; None if it has none that are valid."""
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        parts.port  # noqa: B018 - raises if it is no number
    except ValueError:
        return None
    host = (parts.hostname or "").replace(":", "").replace("%", "")
    return parts if re.fullmatch(r"[\w.-]*", host) else None


def _port(url: str) -> int | None:
    parts = urlsplit(url)
    return parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _same(one: str, other: str) -> bool:
    """Return whether two addresses are the same server: this machine has more than one name."""
    first, second = urlsplit(one), urlsplit(other)
    hosts = is_loopback(first.hostname) and is_loopback(second.hostname)
    same = hosts or first.hostname == second.hostname
    return same and (first.port, first.path) == (second.port, second.path)


def _token_of_environment() -> str:
    file = os.environ.get("JUPYTER_TOKEN_FILE")
    if "JUPYTER_TOKEN" not in os.environ and file:
        return Path(file).read_text("utf-8").strip()
    return os.environ.get("JUPYTER_TOKEN", "")


def _context(url: str, trusted: TlsTrust) -> ssl.SSLContext | None:
    if not url.startswith("https"):
        if trusted is not None:
            raise ValueError(f"ssl= needs an https:// address, and this one is {url}")
        return None
    if isinstance(trusted, ssl.SSLContext):
        return trusted
    try:
        return ssl.create_default_context(cafile=None if trusted is None else os.fspath(trusted))
    except (OSError, ssl.SSLError) as error:
        raise ValueError(f"ssl={trusted} is not a file of certificates: {error}") from error


def _check_secure(url: str, insecure: frozenset[str]) -> None:
    """Raise ``InsecureConnection`` if token and data would cross a network unencrypted."""
    parts = urlsplit(url)
    if parts.scheme == "https" or is_loopback(parts.hostname) or "plain-tcp" in insecure:
        return
    raise InsecureConnection(
        f"{url} is on another machine and uses plain http, so others on the network can read "
        "token and data (use https://, or forward the port with SSH to 127.0.0.1); "
        + spelled("insecure=['plain-tcp']")
        + " would allow it"
    )
