"""The REST interface of a Jupyter server.

Rule: requests and their errors; ``websocket`` carries the messages to a kernel, and ``jupyterhub``
knows what a JupyterHub says of its servers. The token is in a header, never in an address, because
servers and proxies write addresses into their logs. Each error for a refused request says what to
do about it, and blames the token only if the server refused it. A response is untrusted: its
length and the time that it takes are bounded, and an error quotes a line of it at most, without
what this program sent as a secret.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Mapping
from types import TracebackType
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

import httpx

from bridgehead._errors import BridgeError, InsecureConnection, KernelNotFound, TransportError
from bridgehead._protocol.formatting import line, short_list
from bridgehead._protocol.spelling import spelled
from bridgehead._transports.addresses import is_loopback
from bridgehead._transports.base import Transport
from bridgehead._transports.jupyterhub import HubServer, is_of_hub

BODY = 4 << 20  # bytes of a response; a list of a thousand kernels has 0.3 MB
QUOTED = 200  # characters of a response that an error quotes
UNAVAILABLE = (502, 503, 504)  # from a proxy that does not reach its server
KERNEL_ID = r"\w+(-\w+){4}"  # as most servers make them
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

    Args:
        url: the server's address; ends with a slash.
        token: its token, or an empty text.
        trusted: checks the server's certificate.
        headers, cookies: more of them, in each request and for each websocket. They are as secret
            as the token.
    """

    def __init__(
        self,
        url: str,
        token: str,
        trusted: ssl.SSLContext | None,
        headers: Mapping[str, str] | None = None,
        cookies: Mapping[str, str] | None = None,
    ) -> None:
        self.url, self.token, self.trusted = url, token, trusted
        self.stays_here = is_loopback(urlsplit(url).hostname)
        # Nothing compressed: some kilobytes can become gigabytes.
        self.headers = {"Accept-Encoding": "identity", **(headers or {})}
        secrets = [token, *(headers or {}).values(), *(cookies or {}).values()]
        self._secrets = [secret for secret in secrets if len(secret) > 3]
        if cookies:
            self.headers["Cookie"] = "; ".join(f"{key}={value}" for key, value in cookies.items())
            if "_xsrf" in cookies:  # with a login of a browser, servers want it twice
                self.headers["X-XSRFToken"] = cookies["_xsrf"]
        if token:
            self.headers["Authorization"] = f"token {token}"
        self._has_token = "authorization" in map(str.lower, self.headers)
        # None if the server has no address as those of a Hub have it.
        self.hub = HubServer.of(
            url, has_token=self._has_token, send=self._send, quoted=self._quoted
        )
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
            TransportError: the server cannot be reached.
        """
        absence = await self.absence()
        if absence is not None:
            raise server_away(absence)

    async def absence(self) -> str | None:
        """Return None if a Jupyter server answers, or what answers in its place: a proxy, or a Hub.

        The server may be starting then.

        Raises:
            KernelNotFound: something else answers at this address.
            TransportError: nothing answers.
        """
        response = await self._send("GET", f"{self.url}api")
        absence = self._absence(response)
        if absence is not None:
            return absence
        if "version" not in self._object(await self._checked("GET", "api", response)):
            raise KernelNotFound(f"the server at {self.url} is not a Jupyter server")
        return None

    def _absence(self, response: httpx.Response) -> str | None:
        """Return what a response to ``api`` says of a server that is away; None if of none."""
        if self.hub is not None and (self.hub.stands_in(response) or self.hub.lacks(response)):
            return f"{self.hub} does not run"
        if response.status_code in UNAVAILABLE:
            return f"a proxy answers in place of the server at {self.url}: {self._quoted(response)}"
        return None

    async def kernel(self, identity: str) -> Mapping[str, Any] | None:
        """Return the server's description of a kernel; None if the server has no such kernel."""
        response = await self._ask("GET", f"api/kernels/{quote(identity, safe='')}")
        if response.status_code == 404 and not re.fullmatch(KERNEL_ID, identity):
            return None  # the server takes it for the address of something else
        return None if self._lacks_kernel(response) else self._object(response)

    def _lacks_kernel(self, response: httpx.Response) -> bool:
        """Return whether the server, and not a proxy before it, says that it has no such kernel."""
        if response.status_code != 404:
            return False
        if "message" not in _json(response):  # from a proxy that cannot reach its server
            raise server_away(
                f"{self.url} answered 404 to a question for a kernel, and not as a Jupyter server "
                "does; a proxy may have answered in its place"
            )
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
            names = sorted(self._object(specs).get("kernelspecs", {})) if specs.is_success else []
            listed = f"; it has: {short_list(names, 400)}" if names else ""
            raise KernelNotFound(
                f"{self.url} could not start a kernel{f' named {name!r}' if name else ''}: "
                f"{self._quoted(response)}{listed}"
            )
        return str(self._object(response).get("id"))

    async def ask_kernel(self, identity: str, action: str, timeout: float | None = None) -> None:
        """Have a kernel interrupted or restarted."""
        if timeout is None:
            timeout = Transport.timings.server_response
        path = f"api/kernels/{quote(identity, safe='')}/{action}"
        response = await self._ask("POST", path, timeout)
        if not response.is_success:
            reason = self._quoted(response)
            raise TransportError(f"{self.url} did not {action} the kernel: {reason}")

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
        raise kind(f"{self.url} did not end the kernel {line(identity)}: {self._quoted(response)}")

    async def _ask(
        self, method: str, path: str, seconds: float | None = None, **options: Any
    ) -> httpx.Response:
        """Send a request to the server, and raise errors that concern no kernel.

        These are: no server, a wrong token, a wrong address.
        """
        response = await self._send(method, self.url + path, seconds, **options)
        return await self._checked(method, path, response)

    async def _send(
        self, method: str, url: str, seconds: float | None = None, **options: Any
    ) -> httpx.Response:
        """Send a request and return any response; raise errors if there is none."""
        if seconds is None:
            seconds = Transport.timings.server_response
        options["timeout"] = _within(seconds)
        try:
            async with asyncio.timeout(seconds + Transport.timings.server_connect):
                return await self._bounded(method, url, options)
        except (httpx.TransportError, TimeoutError) as error:
            raise unreachable(self.url, error) from error
        except (httpx.InvalidURL, httpx.HTTPError, ValueError) as error:
            raise KernelNotFound(
                f"{self.url} is not the address of a server: {line(error, QUOTED)}"
            ) from error

    async def _checked(self, method: str, path: str, response: httpx.Response) -> httpx.Response:
        """Return a response of the server's interface; raise errors that concern no kernel.

        A page that is not part of the interface means a wrong address, or a login page.
        """
        if self.hub is not None and self.hub.stands_in(response):
            raise server_away(f"{self.hub} does not run")
        # With a wrong token, a server reports a missing _xsrf argument to POST instead.
        if response.status_code in (401, 403) and (method == "POST" or path not in LISTS):
            raise await self.refusal(self._quoted(response))
        if response.is_redirect:
            raise self._redirected(response)
        return response

    def _redirected(self, response: httpx.Response) -> KernelNotFound:
        if is_of_hub(response) and self.hub is None:
            return self._hub_itself(response)
        where = self._quoted(response.headers.get("location", "another page"))
        todo = "check the address" if self._has_token else f"pass {spelled('token=')}"
        return KernelNotFound(
            f"{self.url} redirects to {where}: a login page, or the server has another address; "
            f"{todo}, or pass cookies= or headers= if a proxy before the server wants a login"
        )

    def _hub_itself(self, response: httpx.Response) -> KernelNotFound:
        address, led_to = urlsplit(self.url), urlsplit(response.headers.get("location", "")).path
        # The Hub leads to its own pages, whose address shows below which path it is.
        path = re.split(r"/(?:hub|user)(?:/|$)", led_to if "/hub/" in led_to else address.path)[0]
        base = urlunsplit((address.scheme, address.netloc, path.rstrip("/"), "", ""))
        return KernelNotFound(
            f"{self.url} is of a JupyterHub, but not of one of its servers; use the address of a "
            f"server, as in {base}/user/NAME/"
        )

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
                for name in ("location", "content-type", "x-jupyterhub-version")
                if name in response.headers
            }
            return httpx.Response(
                response.status_code,
                headers=headers,
                content=bytes(body),
                request=response.request,
                extensions=response.extensions,
            )

    async def refusal(self, reason: str) -> BridgeError:
        """Return the error for a request that was refused with 401 or 403."""
        if self.hub is not None:
            try:
                # If the server does not run, the Hub refuses in its place, whatever the token.
                absence = self._absence(await self._send("GET", f"{self.url}api"))
                if absence is not None:
                    return server_away(absence)
                await self.hub.raise_refused(reason)
            except BridgeError as error:
                return error
        if self._has_token:
            return KernelNotFound(
                f"{self.url} refuses the token ({reason}); run `jupyter server list` on the "
                "server's machine, or copy the address that the server printed. The token of a "
                "Kernel Gateway is its auth_token"
            )
        return KernelNotFound(
            f"{self.url} wants a token ({reason}); pass {spelled('token=')}, or set "
            "JUPYTER_TOKEN: `jupyter server list` shows it on the server's machine"
        )

    def _object(self, response: httpx.Response) -> Mapping[str, Any]:
        """Return the JSON object that the server answered."""
        found, reason = _json(response), self._quoted(response)
        if response.status_code >= 500:
            raise server_away(f"the server at {self.url} answers {reason}; try again later")
        if not isinstance(found, dict) or not response.is_success:
            if is_of_hub(response) and self.hub is None:
                raise self._hub_itself(response)
            raise KernelNotFound(
                f"{self.url} belongs to no Jupyter server: it answers {reason}. If the server is "
                "below a path, pass that path, too, as in http://host/user/me"
            )
        return found

    def _quoted(self, found: httpx.Response | str) -> str:
        """Return the line that an error quotes: of a text, or with status of a response."""
        text = found if isinstance(found, str) else _reason(found)
        # What tornado says of each POST that it refuses. Only who sends cookies needs to know it.
        if isinstance(found, httpx.Response) and "_xsrf" in text and "Cookie" not in self.headers:
            text = f"{found.status_code} {found.reason_phrase}"
        for secret in self._secrets:
            text = text.replace(secret, "…")
        return line(text, QUOTED)


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


def _reason(response: httpx.Response) -> str:
    body = _json(response)
    text = body.get("message") if isinstance(body, dict) else None
    return f"{response.status_code} {text or response.reason_phrase}"
