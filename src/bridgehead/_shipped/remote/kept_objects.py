"""Results that stay in the kernel under no name, for the refs of a client.

Rule: use the standard library only, and run on Python 3.8 and later. An expression of a client uses
such an object by a name of its own, which no namespace has; ``namespace`` looks it up. How it is
freed, and when a vanished client loses it, belongs to ``resources``.
"""

from __future__ import annotations

from typing import Any

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.remote.resources import Resource, ResourceTable
    from bridgehead._shipped.wire.errors import WireError
    from bridgehead._shipped.wire.header import KEPT, RequestHeader


class KeptObject(Resource):
    """An object that a client has a ref to."""

    def __init__(self, header: RequestHeader, objects: dict[str, Any]) -> None:
        """``objects`` has the objects of all clients, by the names in their expressions."""
        super().__init__({**header, "resource": header["kept"]})
        self.objects, self.name = objects, KEPT + header["kept"]

    def end(self) -> None:
        self.objects.pop(self.name, None)


def keep(
    resources: ResourceTable, objects: dict[str, Any], header: RequestHeader, value: Any
) -> None:
    """Keep the value of a function for the client that asked for it.

    Raises:
        WireError: the client has closed it already.
    """
    if not header.get("owner"):
        raise WireError("protocol", "the header has no 'owner'")
    kept = KeptObject(header, objects)
    resources.check_closed(kept.header)
    # First into the table: an interrupt in between is an error, after which the client closes it.
    if header["op"] == "call":
        resources.add(kept)
    else:  # the outcome of a task: the kernel's present request may be another client's
        resources.enter(kept)
    objects[kept.name] = value
