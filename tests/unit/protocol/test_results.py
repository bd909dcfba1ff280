"""The reprs and the HTML of this library's objects, for terminals and notebooks.

Rule: one line, or static escaped HTML without a colour, whatever text a kernel sent. No kernel is
asked, and a closed bridge says that it is closed.
"""

from __future__ import annotations

import html
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridgehead import (
    Bridge,
    Fleet,
    Info,
    Message,
    Name,
    Names,
    Ref,
    Result,
    Stats,
    SyncBridge,
    Transfer,
)
from bridgehead._protocol.formatting import line, short_list, size
from bridgehead._protocol.results import MAX_ROWS, bridge_html, fleet_html

EVIL = "<script>alert('&')</script>"
TAGS = {"div", "b", "table", "thead", "tbody", "tr", "th", "td"}
ATTRIBUTES = {("style", "text-align:left"), ("scope", "row"), ("scope", "col")}


class Parsed(HTMLParser):
    """The text of each cell and heading; every tag is known, and closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        assert tag in TAGS
        assert set(attrs) <= ATTRIBUTES
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def handle_comment(self, data: str) -> None:
        raise AssertionError(data)

    handle_decl = unknown_decl = handle_pi = handle_comment


def info(text: str = "x", **more: Any) -> Info:
    fields: dict[str, Any] = {
        "kernel": text,
        "python": (3, 11, 7),
        "executable": text,
        "versions": {text: text},
        "pid": 5,
        "cwd": text,
        "epoch": text,
        "transport": "ipc",
        "lane": "buffers",
        "trust": "data",
        "connection_file": text,
        **more,
    }
    return Info(**fields)


def values(text: str) -> list[Any]:
    """One object of each class, with this text in every field."""
    name = Name(text, text, (3, 4), None, 12)
    return [
        info(text),
        name,
        Names([name] * 3),
        Names([name] * (MAX_ROWS + 1)),
        Transfer((text,) * 50, 123_456_789_012, 1234.5678, "buffers, direct"),
        Ref(None, text),
        Result(text, text, (), {"text/plain": text}, 3),
        Message("stream", {"name": "stdout", "text": text}),
        Message(text, {}),
    ]


@given(st.text() | st.text("<>&'\"\n\x1b\u202e x/\\", max_size=400))
def test_any_text_is_one_line_and_escaped(text: str) -> None:
    for value in values(text):
        shown = repr(value)
        assert len(shown) <= 120, shown
        assert shown.isprintable()
        if hasattr(type(value), "_repr_html_"):
            Parsed(value._repr_html_())
    for markup in (bridge_html("Bridge", text, info(text)), fleet_html([(text, info(text))] * 2)):
        Parsed(markup)


def test_names_types_values_and_paths_are_escaped() -> None:
    shown = [value._repr_html_() for value in values(EVIL) if hasattr(type(value), "_repr_html_")]
    shown += [bridge_html("Bridge", "idle", info(EVIL)), fleet_html([("idle", info(EVIL))])]
    assert len(shown) == 8
    for text in shown:
        assert "<script" not in text
        assert html.escape("<script>") in text
        assert "color" not in text
        assert "background" not in text


def test_ordinary_reprs_fit_on_a_line() -> None:
    shown = {
        repr(Transfer(("x", "y"), 12345, 0.0123, "buffers")): (
            "<Transfer x, y: 12,345 bytes by buffers in 0.0123 s>"
        ),
        repr(Name("df", "pandas.DataFrame", (3, 4), None, 96)): (
            "<df: pandas.DataFrame (3, 4), 96 bytes>"
        ),
        repr(Name("text", "str", None, 5)): "<text: str of 5>",
        repr(Names([Name("x", "int"), Name("y", "int")])): "<Names x, y>",
        repr(Names()): "<Names, none>",
        repr(Result("a\nb", data={"text/plain": "1\n2"}, execution_count=3)): (
            "<Result [3] 1 2, 3 characters printed>"
        ),
        repr(Result(execution_count=3)): "<Result [3] no value>",
        repr(Stats(1, 2, 3, 4, 5, 6, 7_000, 8, 9, 30_000)): (
            "<Stats watches=1, tasks=2, iterations=3, refs=4, callbacks=5, operations=6, "
            "sent=7,000, received=8, retries=9, late=30,000>"
        ),
        repr(info()): "<Info x, Python 3.11.7, pid 5: buffers over ipc, data only>",
        repr(Message("stream", {"name": "stdout", "text": "one\ntwo"})): "<stream one>",
        repr(Message("x", {})): "<x>",
        repr(Ref(None, "df.mean()")): "<Ref df.mean()>",
    }
    for text, expected in shown.items():
        assert text == expected
    many = repr(Names([Name(f"name_{number}", "int") for number in range(1000)]))
    assert many.startswith("<Names name_0, name_1, ")
    assert many.endswith(" more>")
    assert len(many) < 100


async def test_a_bridge_shows_what_it_knows_and_asks_no_kernel(
    loopback: Bridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    await loopback.push(x=1)
    names = await loopback.names()
    assert type(names) is Names

    async def asked(*args: Any, **options: Any) -> Any:
        raise AssertionError("the kernel was asked")

    monkeypatch.setattr(loopback._connection, "within", asked)
    monkeypatch.setattr(loopback._transport.dispatcher, "put", asked)
    texts = Parsed(loopback._repr_html_()).texts
    assert texts[0] == "Bridge"
    assert texts[1].strip() == "idle"
    assert "buffers over loopback" in texts
    assert "x" in Parsed(names._repr_html_()).texts
    ref = loopback.ref("x").real
    assert Parsed(ref._repr_html_()).texts == ["Ref", " x.real"]
    assert type(ref.any_other) is Ref
    shown = Parsed(Fleet([loopback])._repr_html_()).texts
    assert shown[:2] == ["Fleet", " of 1"]
    assert repr(Fleet([loopback])) == "<Fleet of 1: 1 idle>"
    for value in (loopback, ref, Fleet([loopback])):
        assert len(repr(value)) < 100
    await loopback.aclose()
    assert "closed" in repr(loopback)
    assert "closed" in loopback._repr_html_()


async def test_previews_are_shown_in_a_table_and_control_nothing(loopback: Bridge) -> None:
    await loopback.push(rows=[1, "<b>"], text="a\x1b[5m", model=type("Model", (), {})())
    names = await loopback.names(preview=True)
    texts = Parsed(names._repr_html_()).texts
    assert "Value" in texts
    assert "[1, '<b>']" in texts
    assert {name.name: name.preview for name in names} == {
        "rows": "[1, '<b>']",
        "text": r"'a\x1b[5m'",
        "model": None,
    }
    assert "Value" not in Parsed((await loopback.names())._repr_html_()).texts


def test_a_sync_bridge_shows_its_own_name_and_that_it_is_closed() -> None:
    with SyncBridge.loopback() as kernel:
        kernel["x"] = 1
        assert type(kernel.names()) is Names
        assert repr(kernel).startswith("<SyncBridge idle, ")
        assert Parsed(kernel._repr_html_()).texts[:2] == ["SyncBridge", " idle"]
        ref = kernel.ref("x")
    assert repr(kernel).startswith("<SyncBridge closed, ")
    assert Parsed(kernel._repr_html_()).texts[:2] == ["SyncBridge", " closed"]
    assert Parsed(ref._repr_html_()).texts == ["Ref", " x"]


async def test_a_bridge_that_is_not_open_yet_says_so() -> None:
    assert repr(Bridge.loopback()) == (
        "<Bridge, not open yet: await it, or enter it with async with>"
    )
    assert repr(Fleet.launch(2)).startswith("<Fleet, not open yet")
    assert not hasattr(Fleet.launch(2), "_repr_html_")


def test_a_notebook_shows_only_the_name_of_a_connection_file() -> None:
    shown = bridge_html("Bridge", "idle", info(connection_file="/home/me/run/kernel-7.json"))
    assert "kernel-7.json" in Parsed(shown).texts
    assert "/home" not in shown
    assert "Connection" not in bridge_html("Bridge", "idle", info(connection_file=None))


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1 kB"),
        (999_499, "999 kB"),
        (999_500, "1 MB"),
        (1_234_567, "1.23 MB"),
        (5 * 10**15, "5,000 TB"),
    ],
)
def test_sizes_are_readable(nbytes: int, text: str) -> None:
    assert size(nbytes) == text


def test_lines_are_shortened() -> None:
    assert line("a  b\n\tc") == "a b c"
    assert line("x" * 100, 10) == "x" * 9 + "…"
    assert line("\x1b[31mred") == "�[31mred"
    assert len(line("x" * 10**7)) == 60
    assert short_list([]) == ""
    assert short_list(["a", "b"]) == "a, b"
    assert short_list(["a" * 50, "b" * 50], 60) == "a" * 29 + "… and 1 more"
