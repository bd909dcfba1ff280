"""A cell of a notebook's kernel, and what it shows.

Rule: outputs as a front end gets them.
"""

from __future__ import annotations

from bridgehead import Bridge


async def seen(near: Bridge, cell: str) -> list[tuple[str, str]]:
    """A cell's outputs in order: of which type, and their text."""
    told = []
    for output in (await near.run(cell)).outputs:
        kind = output["output_type"]
        told.append((output.get("name", kind), output.get("text") or output["data"]["text/plain"]))
    return told
