"""Reading a table that other threads change meanwhile.

Rule: no kernel. A callback of the garbage collector stands for the other thread.
"""

from __future__ import annotations

import gc

from bridgehead._shipped.remote.snapshot import entries


def test_a_table_that_changes_while_it_is_read_is_read_all_the_same() -> None:
    """Up to Python 3.11, a collection in the middle lets other threads run."""
    table = {number: [number] for number in range(100)}

    def change(phase: str, info: object) -> None:
        table.pop(next(iter(table), 0), None)

    before = gc.get_threshold()
    gc.callbacks.append(change)
    gc.set_threshold(1)
    try:
        found = entries(table)
    finally:
        gc.set_threshold(*before)
        gc.callbacks.remove(change)
    assert all(box == [number] for number, box in found)
    assert {number for number, _ in found} >= table.keys()
