"""What a fleet does the same over kernels and over engines.

Rule: each check takes an open fleet of four with empty namespaces, and fails by an assertion.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from bridgehead import Fleet, FleetError, RunTimeout
from support.kit import until


async def _numbered(fleet: Fleet) -> None:
    """Bind to ``place`` the index of each kernel."""
    await fleet.scatter("places", [*range(len(fleet))])
    await fleet.run("(place,) = places")


async def the_first_error_ends_the_others(fleet: Fleet, folder: Path) -> None:
    """Check that it has the results of those that ended before it, and interrupts what runs."""

    def work(folder: str) -> int:
        import time
        from pathlib import Path

        Path(folder, f"begun {place}").touch()  # type: ignore[name-defined] # noqa: F821
        while place == 2 and not Path(folder, "go").exists():  # type: ignore[name-defined] # noqa: F821
            time.sleep(0.01)
        if place == 2:  # type: ignore[name-defined] # noqa: F821
            raise LookupError("two")
        if place == 3:  # type: ignore[name-defined] # noqa: F821
            time.sleep(300)
        return place  # type: ignore[name-defined, no-any-return] # noqa: F821

    await _numbered(fleet)
    options: Any = {"namespace": True, "fail_fast": True, "on_timeout": "interrupt"}
    call = asyncio.ensure_future(fleet.call(work, str(folder), **options))
    await until(lambda: len(list(folder.iterdir())) == 4)
    await until(lambda: not any(bridge._connection.queue.turns for bridge in fleet[:2]))
    (folder / "go").touch()
    async with asyncio.timeout(60):
        with pytest.raises(FleetError, match="1 of 4 kernels failed") as caught:
            await call
        assert caught.value.results == {0: 0, 1: 1}
        assert {index: repr(error) for index, error in caught.value.errors.items()} == {
            2: "<RemoteError LookupError: two>"
        }
        assert await fleet.pull("place") == [0, 1, 2, 3]  # the last one was interrupted


async def a_late_cell_has_its_output(fleet: Fleet) -> None:
    """Check that it is interrupted at its deadline, and that the error has what all cells gave."""
    await _numbered(fleet)
    code = "import time\nprint('begun', place)\nwhile place == 1: time.sleep(0.01)\nplace"
    async with asyncio.timeout(60):
        with pytest.raises(FleetError, match="1 of 4 kernels failed") as caught:
            await fleet.run(code, timeout=5, on_timeout="interrupt")
        late = caught.value.errors.pop(1)
        assert not caught.value.errors
        assert type(late) is RunTimeout
        assert late.result.stdout == "begun 1\n"
        ended = caught.value.results.items()
        assert {index: (result.stdout, result.data["text/plain"]) for index, result in ended} == {
            index: (f"begun {index}\n", f"{index}") for index in (0, 2, 3)
        }
        assert await fleet.pull("place") == [0, 1, 2, 3]
