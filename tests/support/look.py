"""A look into a kernel's namespace by an independent client.

Rule: no code of bridgehead, so that a look cannot share a bridge's mistake. Each look has its own
client, the shell channel alone and one silent request, so that no missed heartbeat counts as a
death. Names that a user shadows or replaces in the namespace do not affect it.
"""

from __future__ import annotations

import asyncio
import os
import queue
import time
from typing import Any

from jupyter_client.asynchronous.client import AsyncKernelClient

MIME = "application/vnd.bridgehead.look+json"
LONGEST = 2000  # characters of a repr; a longer one is cut, with its length and crc32

# Runs in the kernel, on Python 3.8 and later, in its own namespace.
SOURCE = f"""
def short_repr(value):
    try:
        text = repr(value).encode("utf-8", "backslashreplace").decode("utf-8")
    except Exception as error:
        return "<its repr raised %s>" % type(error).__name__
    if len(text) <= {LONGEST}:
        return text
    from zlib import crc32
    return "%s… %d characters, crc32 %08x" % (text[:40], len(text), crc32(text.encode()))


class Look:
    def _repr_mimebundle_(self, **options):
        hidden = {{"In", "Out", "exit", "quit", "get_ipython", "open"}}
        found = {{}}
        for name, value in list(scope.items()):
            if name[:1] != "_" and name not in hidden and not isinstance(value, type(sys)):
                found[name] = short_repr(value)
        return {{"{MIME}": found}}
"""

# This finds sys without a name of the user's namespace: every CPython has os._wrap_close.
SYS = """(c for c in ().__class__.__base__.__subclasses__() if c.__name__ == "_wrap_close")
.__next__().__init__.__globals__["sys"]"""
EXPRESSION = f"""(lambda own: (
    own["sys"].modules["builtins"].exec({SOURCE!r}, own), own["Look"]())[1])(
    {{"sys": {SYS}, "scope": (lambda: 0).__globals__}})"""


async def look(
    connection_file: str | os.PathLike[str] | None, timeout: float = 60
) -> dict[str, str]:
    """Return each name of the user's namespace with its repr, without modules and IPython's names.

    The request waits behind a running cell.

    Raises:
        TimeoutError: the kernel sent no reply.
    """
    assert connection_file is not None, "a loopback has no kernel to look at"
    client = AsyncKernelClient()
    client.load_connection_file(os.fspath(connection_file))
    client.start_channels(shell=True, iopub=False, stdin=False, hb=False, control=False)
    deadline = time.monotonic() + timeout
    try:
        while True:
            content = await _reply(client, deadline)
            if (
                content["status"] != "aborted"
            ):  # another client's cell failed, and the request did not run
                break
            await asyncio.sleep(0.05)
        entry = content["user_expressions"]["look"]
        assert entry["status"] == "ok", entry
        found: dict[str, str] = entry["data"][MIME]
        return found
    finally:
        client.stop_channels()
        client.context.destroy(linger=0)


async def _reply(client: AsyncKernelClient, deadline: float) -> dict[str, Any]:
    request = client.execute(
        "",
        silent=True,
        store_history=False,
        user_expressions={"look": EXPRESSION},
        allow_stdin=False,
        stop_on_error=False,
    )
    while time.monotonic() < deadline:
        # With a short timeout, because a send may consume the wake-up of a reply that arrives at
        # the same moment.
        try:
            message = await client.get_shell_msg(timeout=0.5)
        except queue.Empty:
            continue
        if message["parent_header"].get("msg_id") == request:
            content: dict[str, Any] = message["content"]
            return content
    raise TimeoutError(f"the kernel of {client.connection_file} did not reply")
