"""A result that shows itself in IPython, as its cell would have."""

from __future__ import annotations

from typing import Any

import IPython.display
import pytest

from bridgehead import Bridge, Result

OUTPUTS: tuple[dict[str, Any], ...] = (
    {"output_type": "stream", "name": "stdout", "text": "out\x1b[5m\n"},
    {"output_type": "stream", "name": "stderr", "text": "err\n"},
    {
        "output_type": "display_data",
        "data": {"text/html": "<b>1</b>", "text/plain": "1"},
        "metadata": {},
    },
    {"output_type": "error", "ename": "E", "evalue": "e", "traceback": ["line 1", "line 2"]},
)


@pytest.fixture
def displayed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Give the list of what is displayed."""
    found: list[Any] = []
    monkeypatch.setattr(
        IPython.display, "display", lambda data, metadata, raw: found.append((data, metadata, raw))
    )
    return found


def test_outputs_are_shown_as_the_cell_would_have(
    displayed: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    Result(outputs=OUTPUTS, trust="pickle")._ipython_display_()
    assert capsys.readouterr() == ("out\x1b[5m\n", "err\nline 1\nline 2\n")
    assert displayed == [({"text/html": "<b>1</b>", "text/plain": "1"}, {}, True)]


def test_outputs_of_an_untrusted_kernel_are_inert(
    displayed: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    Result(outputs=OUTPUTS, trust="data")._ipython_display_()
    assert capsys.readouterr().out == "out\n"
    ((data, _, _),) = displayed
    assert [*data] == ["text/plain"]
    assert data["text/plain"].startswith("1\n[not shown")


async def test_a_result_without_outputs_shows_what_it_is(
    loopback: Bridge, capsys: pytest.CaptureFixture[str]
) -> None:
    (await loopback.run("x = 1"))._ipython_display_()
    assert capsys.readouterr().out == "<Result [1] no value>\n"
