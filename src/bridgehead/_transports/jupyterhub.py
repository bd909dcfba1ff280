"""The place of a server in a JupyterHub: whether it runs, how to start it, why a token is refused.

Rule: requests to the Hub's own interface; those to the server itself belong to ``rest``, which
sends these, too. The address says which server of which user it is. Nothing here waits.

Facts this file rests on, measured with JupyterHub 6.1 and configurable-http-proxy 5.3:

- If the server does not run, the proxy passes requests for it on to the Hub. The Hub redirects a
  GET to ``hub/user/…``, whatever the token, and answers 403 about ``_xsrf`` to POST and DELETE.
- If the server's process was killed, the proxy answers 503 until the Hub notices, half a minute
  later. A request to start it makes the Hub look at once.
- Requests for a named server that does not run reach the user's default server, if that one runs,
  which answers 404.
- ``hub/api/user`` answers 200 to each valid token, whatever its scopes, and 403 to any other.
- A token without ``read:servers`` gets the user's description without ``servers``, or 404; so does
  any token that asks for a user whom the Hub does not have.
- ``hub/api/user`` lists the scopes of the token, with what they include.
- A start that failed says why in ``progress`` alone, until the next start.
- Every answer of the Hub, and of its servers, has the header ``X-JupyterHub-Version``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal
from urllib.parse import unquote, urlsplit, urlunsplit

import httpx

from bridgehead._errors import KernelNotFound
from bridgehead._protocol.spelling import spelled

State = Literal["missing", "stopped", "starting", "running", "stopping", "unknown"]
ABSENT: tuple[State, ...] = ("missing", "stopped")
PENDING: Mapping[str, State] = {"spawn": "starting", "stop": "stopping"}
REFUSED = (401, 403)
TOO_MANY = 429  # servers are starting


def is_of_hub(response: httpx.Response) -> bool:
    """Return whether a JupyterHub, or one of its servers, sent a response."""
    return "x-jupyterhub-version" in response.headers


class HubServer:
    """A server of a JupyterHub.

    Attributes:
        hub: the Hub's address, which ends with ``hub/``.
        label: the server's user and name, as the Hub writes them: ``ada/``, or ``ada/gpu``.
        default: the address of the user's default server.
    """

    def __init__(
        self,
        hub: str,
        user: str,
        name: str,
        *,
        has_token: bool,
        send: Callable[..., Awaitable[httpx.Response]],
        quoted: Callable[[httpx.Response | str], str],
    ) -> None:
        self.hub = hub
        self.label = f"{unquote(user)}/{unquote(name)}"
        self._name, self._has_token, self._send, self._quoted = name, has_token, send, quoted
        self.default = f"{hub.removesuffix('hub/')}user/{user}/"
        self._user_path = f"users/{user}"
        self._path = f"users/{user}/" + (f"servers/{name}" if name else "server")
        self._may_be_used = False  # by this token, as far as is known

    @classmethod
    def of(cls, url: str, **rest: Any) -> HubServer | None:
        """Return the server at an address; None if no server of a Hub has such an address.

        Args:
            url: the server's address, which ends with a slash.
            rest: whether there is a token (``has_token``), how to send a request to an address
                (``send``), and what an error may quote of a response or a text (``quoted``).
        """
        parts = urlsplit(url)
        found = re.fullmatch(r"(.*?/)user/([^/]+)/(?:([^/]+)/)?", parts.path)
        if found is None:
            return None
        base, user, name = found.groups(default="")
        hub = urlunsplit((parts.scheme, parts.netloc, f"{base}hub/", "", ""))
        return cls(hub, user, name, **rest)

    def __str__(self) -> str:
        return f"the server {self.label} of the JupyterHub at {self.hub}"

    def stands_in(self, response: httpx.Response) -> bool:
        """Return whether the Hub sent a response because the server does not run."""
        where = urlsplit(response.headers.get("location", "")).path
        passed_on = response.is_redirect and where.startswith(urlsplit(self.hub).path)
        return is_of_hub(response) and (passed_on or response.status_code == 424)

    def lacks(self, response: httpx.Response) -> bool:
        """Return whether the user's default server answered a question for ``api``.

        It gets the requests for a named server that does not run.
        """
        return bool(self._name) and response.status_code == 404 and is_of_hub(response)

    async def state(self) -> State:
        """Return what the server does, as far as the Hub lets the token know.

        A named server that was never started is ``"missing"``: the name may be that of a page.

        Raises:
            KernelNotFound: the Hub refuses the token, or there is none, or it is not for this
                server.
        """
        response = await self._ask("GET", f"{self._user_path}?include_stopped_servers")
        if response.status_code in REFUSED and is_of_hub(response):
            await self._owner(self._quoted(response))
        servers = _object(response).get("servers") if response.is_success else None
        if not isinstance(servers, dict):
            if not self._may_be_used:
                await self._check_access()
            return "unknown"
        server = servers.get(unquote(self._name))
        if not isinstance(server, dict):
            return "missing" if self._name else "stopped"
        pending = server.get("pending")
        if pending is None and server.get("ready") is True:
            return "running"
        return PENDING.get(str(pending), "stopped")

    async def _check_access(self) -> None:
        """Raise if the token is not for this server, so that waiting for it would be in vain.

        Raises:
            KernelNotFound: the Hub lists the token's scopes, and none of them is for this server.
        """
        response = await self._ask("GET", "user")
        found = _object(response) if response.is_success and is_of_hub(response) else {}
        scopes = found.get("scopes")
        self._may_be_used = not isinstance(scopes, list) or any(map(self._is_for, scopes))
        if not self._may_be_used:
            raise KernelNotFound(
                f"{self} is not for {self._named(found)}, whose token this is: check the user's "
                "name in the address, or use a token of the server's own user, or one with the "
                f"scope access:servers!server={self.label}"
            )

    def _is_for(self, scope: object) -> bool:
        """Return whether a scope of the token may be for using this server."""
        what, _, whose = str(scope).partition("!")
        kind, _, name = whose.partition("=")
        if what != "access:servers":
            return False
        return kind not in ("user", "server") or name in (self.label.partition("/")[0], self.label)

    def _named(self, owner: Mapping[str, Any]) -> str:
        return self._quoted(f"the {owner.get('kind', 'user')} {owner.get('name')}")

    async def start(self) -> bool:
        """Have the server started; return False if the Hub starts too many others at the moment.

        Raises:
            KernelNotFound: the Hub does not start it, or the start failed.
        """
        response = await self._ask("POST", self._path)
        if response.is_success:
            return True
        if response.status_code == TOO_MANY or not is_of_hub(response):
            return False
        reason = self._quoted(response)
        if response.status_code in (*REFUSED, 404):
            owner = await self._owner(reason) or "this token"
            raise KernelNotFound(
                f"{self} cannot be started by {owner} ({reason}): there is no such user, or the "
                f"token lacks the scope servers!server={self.label}"
            )
        if response.status_code == 400 and await self.state() not in ABSENT:
            return True  # it starts or runs already
        raise await self.failed(reason)

    async def failed(self, reason: str = "the Hub does not say why") -> KernelNotFound:
        """Make the error for a start that failed, with the reason that the Hub has."""
        response = await self._ask("GET", f"{self._path}/progress")
        for text in response.text.splitlines() if response.is_success else ():
            event = _object(text.removeprefix("data:"))
            if event.get("failed") is True:
                reason = str(event.get("message")).removeprefix("Spawn failed: ")
        return KernelNotFound(
            f"{self} could not be started: {self._quoted(reason)}; try again, or ask who runs the "
            "Hub: its log says more"
        )

    async def raise_refused(self, reason: str) -> None:
        """Raise the error for a request that the server refused, if the Hub knows why.

        Raises:
            KernelNotFound: the token is missing, wrong, or of a user who may not use the server.
        """
        owner = await self._owner(reason)
        if owner is not None:
            raise KernelNotFound(
                f"{self} refuses {owner} ({reason}): the token is valid, but lacks the scope "
                f"access:servers!server={self.label}, which tokens of the server's own user have"
            )

    async def _owner(self, reason: str) -> str | None:
        """Return whose the token is; None if this is no Hub, or it does not answer.

        Raises:
            KernelNotFound: the Hub refuses the token, or there is none.
        """
        response = await self._ask("GET", "user")
        if not is_of_hub(response):
            return None
        if response.status_code not in REFUSED:
            return self._named(_object(response)) if response.is_success else None
        if self._has_token:
            raise KernelNotFound(
                f"the JupyterHub at {self.hub} refuses the token ({reason}): it is misspelled, "
                f"expired or revoked; get another at {self.hub}token"
            )
        raise KernelNotFound(
            f"the JupyterHub at {self.hub} wants a token ({reason}); pass {spelled('token=')}, "
            f"which you get at {self.hub}token"
        )

    async def _ask(self, method: str, path: str) -> httpx.Response:
        return await self._send(method, f"{self.hub}api/{path}")


def _object(response: httpx.Response | str) -> Mapping[str, Any]:
    """Return the JSON object of a text or response; an empty one if there is none."""
    try:
        found = json.loads(response if isinstance(response, str) else response.content)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
