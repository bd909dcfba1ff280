"""The REST interface of a Jupyter server.

Rule: requests and their errors; ``websocket`` carries the messages to a kernel. The token is in a
header, never in an address, because servers and proxies write addresses into their logs. Each
error for a refused request says what to do about it. A response is untrusted: its length and the
time that it takes are bounded, and an error quotes a line of it at most.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from types import TracebackType
from typing import Any
from urllib.parse import quote, urlsplit

import httpx

from bridgehead._errors import BridgeError, InsecureConnection, KernelNotFound, TransportError
from bridgehead._protocol.formatting import line, short_list
from bridgehead._transports.addresses import is_loopback
from bridgehead._transports.base import Transport

BODY = 4 << 20  # bytes of a response; a list of a thousand kernels has 0.3 MB
QUOTED = 200  # characters of a response that an error quotes
UNAVAILABLE = (502, 503, 504)  # from a proxy that does not reach its server
LISTS = ("api/kernels", "api/sessions")  # a server may refuse these with a valid token


def server_away(text: str) -> TransportError:
    """Make the error for a server that cannot be reached now; a later attempt may succeed.

    It is no class of its own: users would get it, and could not import it.
    """
    error = TransportError(text)
    error.may_recover = True
    return error


class Rest:
    """The REST interface of one server. It belongs to the event loop that made it.

    ``url`` ends with a slash; ``trusted`` checks the server's certificate.
    """

    def __init__(self, url: str, token: str, trusted: ssl.SSLContext | None) -> None:
        self.url, self.token, self.trusted = url, token, trusted
        self.stays_here = is_loopback(urlsplit(url).hostname)
        # Nothing compressed: some kilobytes can become gigabytes.
        self.headers = {"Accept-Encoding": "identity"}
        if token:
            self.headers["Authorization"] = f"token {token}"
        self._client: httpx.AsyncClient | None = None

    async def __aenter__(self) -> Rest:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    @property
    def client(self) -> httpx.AsyncClient:
        """The connections to the server. After ``aclose``, the next request opens new ones."""
        if self._client is None:
            self._client = httpx.AsyncClient(
                headers=self.headers,
                timeout=_within(Transport.timings.server_response),
                verify=self.trusted if self.trusted is not None else True,
                trust_env=not self.stays_here,  # no proxy for this machine: it would get the token
            )
        return self._client

    async def aclose(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def reach(self) -> None:
        """Check that a Jupyter server answers.

        Raises:
            KernelNotFound: something else answers at this address.
        """
        if "version" not in _object(await self._ask("GET", "api")):
            raise KernelNotFound(f"the server at {self.url} is not a Jupyter server")

    async def kernel(self, identity: str) -> Mapping[str, Any] | None:
        """Return the server's description of a kernel; None if the server has no such kernel."""
        response = await self._ask("GET", f"api/kernels/{quote(identity, safe='')}")
        return None if self._lacks_kernel(response) else _object(response)

    def _lacks_kernel(self, response: httpx.Response) -> bool:
        """Return whether the server, and not a proxy before it, says that it has no such kernel."""
        if response.status_code != 404:
            return False
        if "message" not in _json(response):  # from a proxy that cannot reach its server
            raise server_away(f"the server at {self.url} knows no kernels: 404")
        return True

    async def kernels(self) -> list[Mapping[str, Any]]:
        """Return all kernels; none if the server does not list them."""
        response = await self._ask("GET", "api/kernels")
        found = _json(response) if response.status_code == 200 else []
        return [item for item in found if isinstance(item, dict)]

    async def sessions(self) -> list[Mapping[str, Any]]:
        """Return the server's sessions, which say what its kernels are for.

        There are none if the server keeps no sessions, as some gateways do.
        """
        response = await self._ask("GET", "api/sessions")
        found = _json(response) if response.status_code == 200 else []
        return [item for item in found if isinstance(item, dict)]

    async def start(self, name: str | None) -> str:
        """Start a kernel and return its id; without a name, of the server's default kernelspec.

        Raises:
            KernelNotFound: the server has no such kernelspec, or could not start it.
        """
        body = {} if name is None else {"name": name}
        seconds = Transport.timings.server_start
        response = await self._ask("POST", "api/kernels", seconds, json=body)
        if response.status_code not in (200, 201):
            specs = await self._ask("GET", "api/kernelspecs")
            names = sorted(_object(specs).get("kernelspecs", {})) if specs.is_success else []
            listed = f"; it has: {short_list(names, 400)}" if names else ""
            raise KernelNotFound(
                f"{self.url} could not start a kernel{f' named {name!r}' if name else ''}: "
                f"{_reason(response)}{listed}"
            )
        return str(_object(response).get("id"))

    async def ask_kernel(self, identity: str, action: str, timeout: float | None = None) -> None:
        """Have a kernel interrupted or restarted."""
        if timeout is None:
            timeout = Transport.timings.server_response
        path = f"api/kernels/{quote(identity, safe='')}/{action}"
        response = await self._ask("POST", path, timeout)
        if not response.is_success:
            raise TransportError(f"{self.url} did not {action} the kernel: {_reason(response)}")

    async def end(self, identity: str) -> None:
        """End a kernel, trying again for a while; a kernel that has ended already is no error.

        Raises:
            TransportError: the server does not end the kernel. With ``may_recover``, the server
                cannot be reached, so the kernel may still run.
        """
        loop = asyncio.get_running_loop()
        timings = Transport.timings
        until, pauses = loop.time() + timings.server_end, iter(timings.server_end_pauses)
        while True:
            response = await self._ask("DELETE", f"api/kernels/{quote(identity, safe='')}")
            if response.is_success or self._lacks_kernel(response):
                return
            if response.status_code < 500 or loop.time() >= until:
                break
            await asyncio.sleep(next(pauses, timings.server_end_pauses[-1]))
        kind = server_away if response.status_code in UNAVAILABLE else TransportError
        raise kind(f"{self.url} did not end the kernel {line(identity)}: {_reason(response)}")

    async def _ask(
        self, method: str, path: str, seconds: float | None = None, **options: Any
    ) -> httpx.Response:
        """Send a request and raise errors that concern no kernel.

        These are: no server, a wrong token, a wrong address. A page that is not part of the API
        means a wrong address, or a login page.
        """
        if seconds is None:
            seconds = Transport.timings.server_response
        options["timeout"] = _within(seconds)
        try:
            async with asyncio.timeout(seconds + Transport.timings.server_connect):
                response = await self._bounded(method, self.url + path, options)
        except (httpx.TransportError, TimeoutError) as error:
            raise unreachable(self.url, error) from error
        except (httpx.InvalidURL, httpx.HTTPError, ValueError) as error:
            raise KernelNotFound(
                f"{self.url} is not the address of a server: {line(error, QUOTED)}"
            ) from error
        if response.status_code in (401, 403) and path not in LISTS:
            raise self.refused(_reason(response))
        if response.status_code in (401, 403) and method == "POST":
            # With a wrong token, a server reports a missing _xsrf argument instead.
            raise self.refused(_reason(response))
        if response.is_redirect:
            location = line(response.headers.get("location", "another page"), QUOTED)
            raise KernelNotFound(
                f"{self.url} redirects to {location}: a "
                "login page, or the server has another address; pass token= to avoid the login"
            )
        return response

    async def _bounded(self, method: str, url: str, options: dict[str, Any]) -> httpx.Response:
        """Return a response with its body, of which at most ``BODY`` bytes are read."""
        async with self.client.stream(method, url, **options) as response:
            body = bytearray()
            if response.headers.get("content-encoding", "identity") == "identity":
                async for part in response.aiter_raw():
                    body += part
                    if len(body) > BODY:
                        raise KernelNotFound(
                            f"{self.url} belongs to no Jupyter server: it answers with more than "
                            f"{BODY:,} bytes"
                        )
            headers = {
                name: response.headers[name]
                for name in ("location", "content-type")
                if name in response.headers
            }
            return httpx.Response(
                response.status_code,
                headers=headers,
                content=bytes(body),
                request=response.request,
                extensions=response.extensions,
            )

    def refused(self, reason: str) -> KernelNotFound:
        """Make the error for a token that is missing or wrong."""
        if self.token:
            return KernelNotFound(
                f"{self.url} refuses the token ({reason}); run `jupyter server list` on the "
                "server's machine, or copy the address that the server printed"
            )
        return KernelNotFound(
            f"{self.url} wants a token ({reason}); pass token=, or set JUPYTER_TOKEN: "
            "`jupyter server list` shows it on the server's machine"
        )


def _within(seconds: float) -> httpx.Timeout:
    return httpx.Timeout(seconds, connect=Transport.timings.server_connect)


def unreachable(url: str, error: Exception) -> BridgeError:
    """Make the error that says why there is no connection, and what to do about it."""
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    for one in chain:
        if isinstance(one, ssl.SSLCertVerificationError):
            return InsecureConnection(
                f"this machine does not trust the certificate of {url} ({one.verify_message}); "
                "pass ssl= with the file of the authority that signed it"
            )
        if isinstance(one, ssl.SSLError):
            return KernelNotFound(f"{url} does not use TLS; try http://")
    if isinstance(error, (httpx.RemoteProtocolError, httpx.ReadError)) and url[:5] == "http:":
        return server_away(f"{url} closed the connection; try https://")
    why = line(error, QUOTED) or type(error).__name__
    return server_away(f"no server answers at {url}: {why}")


def _json(response: httpx.Response) -> Any:
    """Return the JSON object or list of a response; an empty list if there is none."""
    try:
        found = response.json()
    except (ValueError, RecursionError):
        return []
    return found if isinstance(found, (dict, list)) else []


def _object(response: httpx.Response) -> Mapping[str, Any]:
    found = _json(response)
    if not isinstance(found, dict) or not response.is_success:
        raise KernelNotFound(
            f"{response.url} belongs to no Jupyter server: it answers {_reason(response)}. If the "
            "server is below a path, pass that path, too, as in http://host/user/me"
        )
    return found


def _reason(response: httpx.Response) -> str:
    body = _json(response)
    text = body.get("message") if isinstance(body, dict) else None
    return f"{response.status_code} {line(text or response.reason_phrase, QUOTED)}"
