"""Wait for a server that is starting, or have it started.

Rule: only for a server in whose place something else answers: a JupyterHub, or a proxy. If nothing
answers at an address, waiting for it would hide a wrong address. Nothing here belongs to a kernel.
"""

from __future__ import annotations

import asyncio
import logging

from bridgehead._errors import KernelNotFound, TransportError
from bridgehead._protocol.spelling import spelled
from bridgehead._transports.base import Transport
from bridgehead._transports.jupyterhub import ABSENT, HubServer, State
from bridgehead._transports.rest import Rest

ADVICE = {
    "missing": (
        "if the end of the address is a page of the user's server, use {hub.default}; with "
        "{start} the Hub makes a server of this name"
    ),
    "stopped": "start it at {hub.hub}home, or with {start}",
    "starting": "pass a longer {timeout}, or look at {hub.hub}home how far it is",
    "stopping": "try again when it has stopped",
    "running": "its process may have ended, which the Hub notices after a while",
    "unknown": (
        "check the user's name, look at {hub.hub}home, or start it with {start}; a token with the "
        "scope read:servers!server={hub.label} would see whether it starts"
    ),
}
IS: dict[State, str] = {
    "missing": "does not exist",
    "unknown": "does not run, or is starting",
}
log = logging.getLogger("bridgehead")


async def until_it_answers(rest: Rest, seconds: float, *, start: bool = False) -> None:
    """Wait until the server answers.

    Args:
        rest: the server.
        seconds: how long to wait.
        start: whether to have a server of a JupyterHub started that does not run. A timeout or a
            cancel does not stop it: the next call finds it further, or running.

    Raises:
        KernelNotFound: the server does not answer in time, or its start failed; the Hub refuses the
            token, or to start the server; or this is no Jupyter server.
        TransportError: nothing answers at this address.
    """
    wait = _Wait(rest, start)
    try:
        async with asyncio.timeout(seconds) as limit:
            await wait.run(seconds)
    except TimeoutError:
        if not limit.expired():
            raise
        raise KernelNotFound(wait.late(seconds)) from None


class _Wait:
    """One wait: what was seen of the server, and what was done."""

    def __init__(self, rest: Rest, start: bool) -> None:
        self._rest, self._to_start = rest, start
        self._absence: str | None = None  # what answered in the server's place
        self._state: State | None = None  # what the Hub says of the server
        self._began = False  # whether a start of the server was seen

    async def run(self, seconds: float) -> None:
        pauses = iter(Transport.timings.server_pauses)
        while True:
            try:
                absence = await self._rest.absence()
                if absence is None:
                    return
                if self._absence is None:
                    log.info("%s; waiting for it up to %g s", absence, seconds)
                self._absence = absence
                if self._rest.hub is not None:
                    await self._look(self._rest.hub)
            except TransportError as error:  # the proxy or the Hub may be restarted meanwhile
                if self._absence is None or not error.may_recover:
                    raise
                self._absence = str(error)
            await asyncio.sleep(next(pauses, Transport.timings.server_pauses[-1]))

    async def _look(self, hub: HubServer) -> None:
        """Ask the Hub for the server's state, and have the server started if need be."""
        before, self._state = self._state, await hub.state()
        if self._state in ABSENT and self._began:
            raise await hub.failed()
        self._began = self._began or self._state == "starting"
        if self._to_start and self._state not in ("starting", "stopping"):
            # Of a server that runs, for the Hub, this makes the Hub look whether it still does.
            self._began = await hub.start()
            self._to_start = not self._began
        elif self._state in ABSENT and before not in ABSENT:
            # The wait may be long, and in vain.
            log.warning(
                "%s %s; waiting until it is started: %s",
                hub,
                _is(self._state),
                _advice(hub, self._state),
            )

    def late(self, seconds: float) -> str:
        """Return the text of the error for a server that did not answer in time."""
        if self._absence is None:
            return f"the server at {self._rest.url} did not answer within {seconds:g} s"
        hub, state = self._rest.hub, self._state
        if hub is None or state is None:
            return (
                f"{self._absence}, for {seconds:g} s: the server does not run, or is still "
                "starting; try again later, or check the address"
            )
        return f"{hub} {_is(state)}, and did not answer within {seconds:g} s; {_advice(hub, state)}"


def _is(state: State) -> str:
    return IS.get(state, f"is {state}")


def _advice(hub: HubServer, state: State) -> str:
    arguments = {"start": spelled("start_server=True"), "timeout": spelled("timeout=")}
    return ADVICE[state].format(hub=hub, **arguments)
