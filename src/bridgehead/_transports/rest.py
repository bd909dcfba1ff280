"""The kernels of a Jupyter server, by its REST interface.

Rule: requests and their errors; messages to a kernel are the websocket's. The token is in a
header, never in an address, which servers and proxies write into their logs. Whatever the server
refuses is told as what to do about it.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from types import TracebackType
from typing import Any
from urllib.parse import quote, urlsplit

import httpx

from bridgehead._errors import BridgeError, InsecureConnection, KernelNotFound, TransportError
from bridgehead._transports.addresses import is_loopback

CONNECT_WAIT = 10.0  # s; TLS to a port that speaks none is never answered
ANSWER_WAIT = 20.0  # s for an answer; starting a kernel may take longer
STARTING = 120.0  # s
LISTS = ("api/kernels", "api/sessions")  # which a server may keep to itself


class ServerUnreachable(TransportError):
    """The server cannot be reached now; it may come back."""


class Rest:
    """One server, from the event loop that made it.

    ``url`` ends with a slash; ``trusted`` is what its certificate is checked by.
    """

    def __init__(self, url: str, token: str, trusted: ssl.SSLContext | None) -> None:
        self.url, self.token, self.trusted = url, token, trusted
        self.stays_here = is_loopback(urlsplit(url).hostname)
        self.headers = {"Authorization": f"token {token}"} if token else {}
        self._client = httpx.AsyncClient(
            headers=self.headers,
            timeout=httpx.Timeout(ANSWER_WAIT, connect=CONNECT_WAIT),
            verify=trusted if trusted is not None else True,
            trust_env=not self.stays_here,  # a proxy would be elsewhere, and take the token along
        )

    async def __aenter__(self) -> Rest:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._client.aclose()

    async def reach(self) -> None:
        """Whether there is a Jupyter server at all.

        Raises:
            KernelNotFound: something else answers there.
        """
        if "version" not in _object(await self._ask("GET", "api")):
            raise KernelNotFound(f"what answers at {self.url} is no Jupyter server")

    async def kernel(self, identity: str) -> Mapping[str, Any] | None:
        """What the server says of a kernel; None if it has none of that id."""
        answer = await self._ask("GET", f"api/kernels/{quote(identity, safe='')}")
        if answer.status_code != 404:
            return _object(answer)
        if "message" not in _json(answer):  # a proxy's, whose server is away
            raise ServerUnreachable(f"what answers at {self.url} knows no kernels: 404")
        return None

    async def kernels(self) -> list[Mapping[str, Any]]:
        """All kernels; none where the server does not list them."""
        answer = await self._ask("GET", "api/kernels")
        found = _json(answer) if answer.status_code == 200 else []
        return [item for item in found if isinstance(item, dict)]

    async def sessions(self) -> list[Mapping[str, Any]]:
        """What its kernels are for; none where it keeps no sessions, as a gateway may."""
        answer = await self._ask("GET", "api/sessions")
        found = _json(answer) if answer.status_code == 200 else []
        return [item for item in found if isinstance(item, dict)]

    async def start(self, name: str | None) -> str:
        """Start a kernel, of the server's default kernelspec if None; gives its id.

        Raises:
            KernelNotFound: the server has no such kernelspec, or could not start it.
        """
        asked = {} if name is None else {"name": name}
        patience = httpx.Timeout(STARTING, connect=CONNECT_WAIT)
        answer = await self._ask("POST", "api/kernels", json=asked, timeout=patience)
        if answer.status_code not in (200, 201):
            known = await self._ask("GET", "api/kernelspecs")
            names = sorted(_object(known).get("kernelspecs", {})) if known.is_success else []
            listed = f"; it has: {', '.join(names)}" if names else ""
            raise KernelNotFound(
                f"{self.url} could not start a kernel{f' named {name!r}' if name else ''}: "
                f"{_said(answer)}{listed}"
            )
        return str(_object(answer)["id"])

    async def ask_kernel(self, identity: str, action: str, timeout: float = ANSWER_WAIT) -> None:
        """Have a kernel interrupted or restarted."""
        path = f"api/kernels/{quote(identity, safe='')}/{action}"
        answer = await self._ask("POST", path, timeout=timeout)
        if not answer.is_success:
            raise TransportError(f"{self.url} did not {action} the kernel: {_said(answer)}")

    async def end(self, identity: str) -> None:
        """End a kernel; one that is gone already is no error."""
        answer = await self._ask("DELETE", f"api/kernels/{quote(identity, safe='')}")
        if not answer.is_success and answer.status_code != 404:
            raise TransportError(f"{self.url} did not end the kernel: {_said(answer)}")

    async def _ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Raises what has nothing to do with a kernel: no server, a wrong token, a wrong address.

        A page that is not the API's is a wrong address, or a login page that is in the way.
        """
        try:
            answer = await self._client.request(method, self.url + path, **options)
        except httpx.TransportError as error:
            raise unreachable(self.url, error) from error
        except (httpx.InvalidURL, httpx.HTTPError, ValueError) as error:
            raise KernelNotFound(f"{self.url} is no address of a server: {error}") from error
        if answer.status_code in (401, 403) and path not in LISTS:
            raise self.refused(_said(answer))
        if answer.status_code in (401, 403) and method == "POST":
            # Where the token is wrong, a server complains of a missing _xsrf argument instead.
            raise self.refused(_said(answer))
        if answer.is_redirect:
            raise KernelNotFound(
                f"{self.url} leads to {answer.headers.get('location', 'another page')}: a login "
                "page, or the server has another address; a token of yours would be let through"
            )
        return answer

    def refused(self, said: str) -> KernelNotFound:
        """The error for a token that is missing or wrong."""
        if self.token:
            return KernelNotFound(
                f"{self.url} refuses the token ({said}); `jupyter server list` shows the right "
                "one where it runs, or it is in the address that the server printed"
            )
        return KernelNotFound(
            f"{self.url} wants a token ({said}): pass token=, or set JUPYTER_TOKEN; "
            "`jupyter server list` shows it where the server runs"
        )


def unreachable(url: str, error: Exception) -> BridgeError:
    """Why there is no connection, and what to do about it."""
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    for one in chain:
        if isinstance(one, ssl.SSLCertVerificationError):
            return InsecureConnection(
                f"the certificate of {url} is none that this machine trusts "
                f"({one.verify_message}); ssl= takes the file of the authority that signed it"
            )
        if isinstance(one, ssl.SSLError):
            return KernelNotFound(f"{url} does not speak TLS; is it http://?")
    if isinstance(error, (httpx.RemoteProtocolError, httpx.ReadError)) and url[:5] == "http:":
        return ServerUnreachable(f"{url} hung up; is it https://?")
    return ServerUnreachable(f"nothing answers at {url}: {str(error) or type(error).__name__}")


def _json(answer: httpx.Response) -> Any:
    """What is in an answer; nothing where it is no JSON of Jupyter's."""
    try:
        found = answer.json()
    except ValueError:
        return []
    return found if isinstance(found, (dict, list)) else []


def _object(answer: httpx.Response) -> Mapping[str, Any]:
    found = _json(answer)
    if not isinstance(found, dict) or not answer.is_success:
        raise KernelNotFound(
            f"{answer.url} is no Jupyter server's: it answers {_said(answer)}. A server below a "
            "path needs it in its address, as in http://host/user/me"
        )
    return found


def _said(answer: httpx.Response) -> str:
    told = _json(answer)
    words = told.get("message") if isinstance(told, dict) else None
    return f"{answer.status_code} {words or answer.reason_phrase}"
