"""The outputs of a cell in a notebook's kernel.

Rule: the outputs are those that a front end gets.
"""

from __future__ import annotations

from bridgehead import Bridge


async def seen(bridge: Bridge, cell: str) -> list[tuple[str, str]]:
    """Run a cell; return the type and the text of each of its outputs, in order."""
    found = []
    for output in (await bridge.run(cell)).outputs:
        kind = output["output_type"]
        text = output.get("text") or output["data"]["text/plain"]
        found.append((output.get("name", kind), text))
    return found
