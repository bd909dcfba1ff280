"""Results of calls that stay in the kernel under no name.

Rule: when the kernel is asked to keep a result, and when to free it. The ref that holds it belongs
to ``_protocol/ref.py``, the kernel's end to ``_shipped/remote/kept_objects.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from bridgehead._connection.call import Call
from bridgehead._connection.resources import HeldResources, RemoteResource
from bridgehead._errors import BridgeError
from bridgehead._protocol.response import Response


class KeptResult(RemoteResource):
    """An object in the kernel that has no name there.

    What was sent before it is dropped may still use it, even if no caller waits for that any more.
    """

    kind = "refs"
    in_order = True

    def take(self, event: Response | BridgeError) -> None:
        """Ignore events: there are none."""

    def free(self) -> None:
        """Have the kernel free it, soon; any thread may call this."""
        self.is_known = False
        self.resources.leave_soon(self)


@contextmanager
def keeping(resources: HeldResources, call: Call) -> Iterator[KeptResult]:
    """Have the kernel keep the result of a call; have it freed if the call does not succeed."""
    result = KeptResult(resources)
    resources.enter(result)
    call.fields.update(resources.fields_of_kept(result))
    try:
        yield result
    except BaseException:
        result.is_asked = bool(call.request)
        resources.leave(result)
        raise
    resources.made(result)
