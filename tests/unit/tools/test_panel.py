"""The Python side of the panel, on loopbacks: what it sends to the page, and what it does.

Rule: no kernel and no page. ``Page`` stands where the browser is: it keeps what arrived, applies
changes as ``panel.js`` does, and asks. ``servers/test_panel.py`` has a real page.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from IPython.core.events import EventManager

import bridgehead
from bridgehead import Bridge, Fleet, SyncBridge, SyncFleet
from bridgehead._protocol.results import Name
from bridgehead._tools.panel import followed_kernel, widget
from bridgehead._tools.panel.jobs import notebook_names, taken_names
from bridgehead._tools.panel.texts import LONGEST, usable, why
from support.kit import set_capabilities

RELEASE = threading.Event()


class Page:
    """What a page knows."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.names: dict[int, dict[str, Any]] = {}
        self.versions: dict[int, int] = {}
        self.heads: dict[int, dict[str, Any]] = {}
        self.jobs: dict[int, dict[str, Any]] = {}
        self.looks: list[dict[str, Any]] = []
        self.notebook: list[Any] = []
        self.taken: list[str] = []
        self.refused: list[str] = []
        self.panel: Any = None
        self._loop, self._arrived = asyncio.get_running_loop(), asyncio.Event()

    def take(self, message: dict[str, Any]) -> None:
        """Take a message, in any thread."""
        self._loop.call_soon_threadsafe(self._take, message)

    def _take(self, message: dict[str, Any]) -> None:
        self.messages.append(message)
        kind, kernel = message["kind"], message.get("kernel", -1)
        if kind == "kernel":
            self.heads[kernel] = message
        elif kind == "job":
            self.jobs[message["job"]] = message
        elif kind == "look":
            self.looks.append(message)
        elif kind == "notebook":
            self.notebook, self.taken = message["names"], message["taken"]
        elif kind == "refused":
            self.refused.append(message["text"])
        elif kind == "names":
            rows = self.names.setdefault(kernel, {})
            if message["from"] is None:
                rows.clear()
            else:
                assert message["from"] == self.versions[kernel]
            self.versions[kernel] = message["to"]
            for key in message["gone"]:
                del rows[key]
            rows.update({row[0]: row for row in message["set"]})
        self._arrived.set()

    def ask(self, request: str, /, **fields: Any) -> None:
        self.panel._received(self.panel, {"ask": request, "view": "v", "serial": 1, **fields}, [])

    async def until(self, condition: Callable[[], Any]) -> Any:
        async with asyncio.timeout(60):
            while not (found := condition()):
                self._arrived.clear()
                await self._arrived.wait()
        return found

    async def shows(self, kernel: int, *names: str) -> None:
        await self.until(lambda: kernel in self.names and {*self.names[kernel]} == {*names})

    async def job(self) -> dict[str, Any]:
        """Wait until all jobs have ended; return the last one."""
        await self.until(
            lambda: self.jobs and all(j["state"] != "running" for j in self.jobs.values())
        )
        return self.jobs[max(self.jobs)]


@pytest.fixture
async def page(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Page]:
    shown = Page()
    monkeypatch.setattr(widget.Panel, "send", lambda panel, content: shown.take(content))
    shell = SimpleNamespace(user_ns={}, user_ns_hidden={})
    events: Any = EventManager
    hooks = ("pre_run_cell", "post_run_cell")
    shell.events = events(shell, dict.fromkeys(hooks, lambda argument: None))
    monkeypatch.setattr(widget, "get_ipython", lambda: shell)
    monkeypatch.setattr(followed_kernel, "TICK", 0.02)  # s; nothing is asked of a kernel at a tick
    yield shown
    if shown.panel is not None:
        shown.panel.close()
        assert shell.events.callbacks == {hook: [] for hook in hooks}


def show(page: Page, *bridges: Any, opened: bool = True) -> Any:
    page.panel = panel = bridgehead.panel(*bridges)
    page.ask("hello")
    for number in range(len(panel._kernels) if opened else 0):
        page.ask("open", kernel=number)
    return panel


async def watches(bridge: Bridge, count: int) -> None:
    """Wait until the kernel has so many watches of this bridge."""
    async with asyncio.timeout(60):
        while bridge.stats.watches != count:
            await bridge.names()


# ------------------------------------------------------------ arguments and import


async def test_without_anywidget_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "bridgehead._tools.panel.widget")
    monkeypatch.setitem(sys.modules, "anywidget", None)
    async with Bridge.loopback() as bridge:
        with pytest.raises(ImportError, match=r"pip install 'bridgehead\[panel\]'"):
            bridgehead.panel(bridge)


async def test_arguments_are_open_bridges_and_fleets() -> None:
    with pytest.raises(ValueError, match="at least one bridge or fleet"):
        bridgehead.panel()
    with pytest.raises(TypeError, match="open bridges and fleets, not int"):
        bridgehead.panel(5)  # type: ignore[arg-type]
    async with Bridge.loopback() as bridge:
        with pytest.raises(ValueError, match="each kernel once"):
            bridgehead.panel(bridge, Fleet([bridge]))


# ------------------------------------------------------------ what is shown


async def test_the_names_are_shown_and_kept_current(page: Page) -> None:
    async with Bridge.loopback() as bridge:
        await bridge.push(df=pd.DataFrame({"a": [1]}), x=[1, 2])
        show(page, bridge)
        await page.shows(0, "df", "x")
        assert page.names[0]["df"][:5] == ("df", "df", "DataFrame", "1 × 1", "140 B")
        assert page.names[0]["x"][5] == "[1, 2]"
        await bridge.run("y = 'new'; del df; x.append(3)")
        await page.shows(0, "x", "y")
        assert page.names[0]["x"][5] == "[1, 2, 3]"
        last = [message for message in page.messages if message["kind"] == "names"][-1]
        assert ([row[0] for row in last["set"]], last["gone"]) == (["x", "y"], ["df"])


async def test_the_head_of_a_kernel_says_state_memory_lane_and_trust(page: Page) -> None:
    async with Bridge.loopback(trust="data") as bridge:
        show(page, bridge, opened=False)
        head = await page.until(lambda: page.heads.get(0, {}).get("memory") and page.heads[0])
        assert (head["state"], head["lane"]) == ("idle", "buffers over loopback")
        assert (head["trust"], head["why_trust"]) == ("data only", "the caller asked for it")
        await watches(bridge, 0)  # no view shows the names


async def test_a_view_that_missed_a_change_gets_all(page: Page) -> None:
    async with Bridge.loopback() as bridge:
        await bridge.push(x=1)
        show(page, bridge)
        await page.shows(0, "x")
        page.names[0].clear()
        page.ask("names", kernel=0)
        await page.shows(0, "x")


async def test_of_many_names_the_first_are_shown_and_the_others_counted(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(followed_kernel, "SHOWN_NAMES", 3)
    async with Bridge.loopback() as bridge:
        await bridge.push({f"x{number}": number for number in range(5)})
        show(page, bridge)
        await page.shows(0, "x0", "x1", "x2")
        await page.until(lambda: page.heads[0]["more"] == 2)


async def test_of_too_many_names_none_is_shown_until_there_are_fewer(page: Page) -> None:
    async with Bridge.loopback() as bridge:
        await bridge.run("globals().update((f'x{n}', n) for n in range(100_001))")
        show(page, bridge)
        await page.until(lambda: "more than 100,000 names" in page.heads.get(0, {}).get("note", ""))
        assert "names('df*') of its bridge" in page.heads[0]["note"]  # the page has no pattern
        assert not page.names.get(0)
        await bridge.run("for n in range(3, 100_001): del globals()[f'x{n}']\ndel n")
        page.ask("refresh", kernel=0)
        await page.shows(0, "x0", "x1", "x2")
        await page.until(lambda: page.heads[0]["note"] == "")


@pytest.mark.parametrize("kind", ["bridges", "fleet", "sync", "sync fleet"])
async def test_bridges_and_fleets_of_both_kinds_are_shown(page: Page, kind: str) -> None:
    if kind in ("bridges", "fleet"):
        async with Bridge.loopback() as one, Bridge.loopback() as other:
            await one.push(x=1)
            shown = show(page, *((one, other) if kind == "bridges" else (Fleet([one, other]),)))
            await page.shows(0, "x")
            page.ask("handoff", kernel=0, name="x", target=1)
            assert (await page.job())["state"] == "done"
            await page.shows(1, "x")
            shown.close()
    else:
        with SyncBridge.loopback() as first, SyncBridge.loopback() as second:
            first["x"] = 1
            shown = show(
                page, *((first, second) if kind == "sync" else (SyncFleet([first, second]),))
            )
            await page.shows(0, "x")
            page.ask("handoff", kernel=0, name="x", target=1)
            assert (await page.job())["state"] == "done"
            await page.shows(1, "x")
            assert second["x"] == 1
            shown.close()
    assert repr(shown) == "<Panel of 2 kernels>"


async def test_a_kernel_is_labelled_by_its_variable_in_the_notebook(page: Page) -> None:
    async with Bridge.loopback() as one, Bridge.loopback() as other, Bridge.loopback() as third:
        fleet = Fleet([other, third])
        widget.get_ipython().user_ns.update(trainer=one, both=fleet)  # type: ignore[union-attr]
        show(page, one, fleet, opened=False)
        first = await page.until(lambda: page.messages and page.messages[1])
        assert [kernel["label"] for kernel in first["kernels"]] == ["trainer", "both[0]", "both[1]"]


# ------------------------------------------------------------ previews


async def test_a_closer_look_shows_the_head_of_a_table_statistics_and_a_picture(
    page: Page,
) -> None:
    async with Bridge.loopback(trust="data") as bridge:
        table = pd.DataFrame({"a": [1.5, None], "when": pd.to_datetime(["2020-01-02", None])})
        await bridge.push(table=table, numbers=np.arange(6.0), photo=np.zeros((9, 9, 3), "uint8"))
        show(page, bridge)
        looks: dict[str, Any] = {}
        for name in ("table", "numbers", "photo"):
            page.ask("look", kernel=0, name=name)
            await page.until(lambda name=name: page.looks and page.looks[-1]["name"] == name)
            looks[name] = page.looks[-1]
        assert looks["table"]["columns"] == ("", "a", "when")
        assert looks["table"]["rows"][0] == ("0", "1.5", "2020-01-02 00:00:00")
        assert ("Mean", "2.5") in looks["numbers"]["facts"]
        assert looks["photo"]["picture"].startswith("data:image/png;base64,iVBORw0KGgo")


async def test_no_code_of_a_class_runs_for_names_and_previews(page: Page) -> None:
    async with Bridge.loopback() as bridge:
        await bridge.run(
            "class Loud:\n"
            "    def __getattribute__(self, name): calls.append(name); raise ValueError(name)\n"
            "    def __repr__(self): calls.append('repr'); return 'loud'\n"
            "    __str__ = __len__ = __iter__ = __repr__\n"
            "calls = []; x = Loud(); y = [x]; z = {'a': x}"
        )
        show(page, bridge)
        await page.until(lambda: "z" in page.names.get(0, {}))
        for name in "xyz":
            page.ask("look", kernel=0, name=name)
            await page.until(lambda name=name: page.looks and page.looks[-1]["name"] == name)
        assert await bridge.pull("calls") == []
        assert page.looks[1]["rows"] == (("0", "<Loud>"),)


HOSTILE = ["<img src=x onerror=alert(1)>", "‮evil", "a\nb\x1b[31m", "\ud800", "x" * 5000]


async def test_hostile_names_are_shown_as_text_and_cannot_be_used(page: Page) -> None:
    async with Bridge.loopback() as bridge:
        await bridge.run(f"globals().update(dict.fromkeys({HOSTILE!r}, '<script>'))")
        show(page, bridge)
        await page.until(lambda: len(page.names.get(0, {})) == len(HOSTILE))
        for row in page.names[0].values():
            assert len(row[1]) <= 80
            assert row[1].isprintable()
            assert not row[8]
            page.ask("delete", kernel=0, name=row[0])
        await page.until(lambda: len(page.refused) == len(HOSTILE))
        assert all("is no name that a cell can use" in text for text in page.refused)
        assert len(await bridge.names()) == len(HOSTILE)


# ------------------------------------------------------------ buttons


async def test_pull_binds_a_name_of_the_notebook(page: Page) -> None:
    async with Bridge.loopback() as bridge:
        await bridge.push(x=[1, 2])
        panel = show(page, bridge)
        page.ask("pull", kernel=0, name="x", target=" mine ")
        job = await page.job()
        assert job["state"] == "done"
        assert job["text"].startswith("mine is now in the notebook: ")
        assert panel._shell.user_ns["mine"] == [1, 2]


async def test_push_binds_a_name_of_the_kernel(page: Page) -> None:
    async with Bridge.loopback() as bridge:
        panel = show(page, bridge)
        panel._shell.user_ns["mine"] = [1, 2]
        page.ask("push", kernel=0, name="mine", target="theirs")
        assert (await page.job())["state"] == "done"
        assert await bridge.pull("theirs") == [1, 2]
        await page.shows(0, "theirs")


async def test_delete_and_restart(page: Page) -> None:
    async with Bridge.loopback() as bridge:
        await bridge.push(x=1, y=2)
        show(page, bridge)
        await page.shows(0, "x", "y")
        page.ask("delete", kernel=0, name="x")
        await page.shows(0, "y")
        page.ask("restart", kernel=0)
        await page.until(lambda: "was restarted" in page.jobs[max(page.jobs)]["text"])
        await page.shows(0)
        await bridge.push(z=1)  # the caller need not hear of the restart that the user chose
        await bridge.run("pass")
        await page.shows(0, "z")


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"ask": "pull", "name": "gone", "target": "x"}, "'gone' is not defined in the kernel"),
        ({"ask": "push", "name": "gone", "target": "x"}, "the notebook has no name 'gone'"),
        ({"ask": "push", "name": "lock", "target": "x"}, "EncodeError: "),
        ({"ask": "interrupt"}, "a loopback has no process to interrupt"),
        ({"ask": "handoff", "name": "x", "target": 0}, "to= must be another bridge"),
    ],
)
async def test_what_fails_is_said_in_plain_text(
    page: Page, fields: dict[str, Any], text: str
) -> None:
    async with Bridge.loopback() as bridge:
        await bridge.push(x=1)
        panel = show(page, bridge)
        panel._shell.user_ns["lock"] = threading.Lock()
        page.ask(fields.pop("ask"), kernel=0, **fields)
        job = await page.job()
        assert job["state"] == "failed"
        assert text in job["text"]
        assert "\n" not in job["text"]


@pytest.mark.parametrize(
    "fields",
    [
        {"ask": "look", "kernel": 5, "name": "x"},
        {"ask": "look", "kernel": "0", "name": "x"},
        {"ask": "look", "kernel": 0},
        {"ask": "pull", "kernel": 0, "name": "x", "target": "__import__('os')"},
        {"ask": "pull", "kernel": 0, "name": "print(1)", "target": "x"},
        {"ask": "handoff", "kernel": 0, "name": "x"},
        {"ask": "nothing", "kernel": 0},
    ],
)
async def test_a_message_that_no_page_sends_is_refused(page: Page, fields: dict[str, Any]) -> None:
    async with Bridge.loopback() as bridge:
        show(page, bridge)
        page.panel._received(None, {"view": "v", **fields}, [])
        await page.until(lambda: page.refused)
        page.panel._received(None, "text", [])
        assert page.jobs == {}


async def test_a_transfer_reports_progress_and_can_be_cancelled(page: Page) -> None:
    async with Bridge.loopback() as bridge, Bridge.loopback() as other:
        show(page, bridge, other)
        # The thread of a loopback is one of this process, and so it sees this module.
        busy = asyncio.create_task(
            other.run(f"__import__('sys').modules[{__name__!r}].RELEASE.wait(60)")
        )
        await bridge.push(x=np.zeros(1000))
        page.ask("handoff", kernel=0, name="x", target=1)
        number = await page.until(lambda: max(page.jobs, default=0))
        page.ask("cancel", job=number)
        job = await page.job()
        assert (job["state"], job["text"]) == (
            "cancelled",
            "Cancelled: Hand x over from kernel 1 to kernel 2",
        )
        page.ask("dismiss", job=number)
        assert page.panel._jobs.known == {}
        RELEASE.set()
        await busy
        page.ask("handoff", kernel=0, name="x", target=1)
        await page.until(lambda: max(page.jobs) > number)
        job = await page.job()
        steps = [one for one in page.messages if one.get("job") == job["job"]]
        assert job["state"] == "done"
        assert job["done"] == job["total"] > 8000
        assert 0 < steps[1]["done"] < job["total"]


# ------------------------------------------------------------ its life


async def test_a_panel_follows_only_while_a_view_shows_it(page: Page) -> None:
    async with Bridge.loopback() as bridge:
        await bridge.push(x=1)
        panel = show(page, bridge)
        await page.shows(0, "x")
        assert bridge.stats.watches == 1
        page.ask("shut", kernel=0)
        await watches(bridge, 0)
        page.ask("open", kernel=0)
        await watches(bridge, 1)
        page.ask("bye")
        await watches(bridge, 0)
        assert not any(panel._shell.events.callbacks.values())


async def test_a_page_that_is_gone_without_a_word_is_followed_no_longer(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A browser that crashed says no "bye"; one that was suspended comes back."""
    async with Bridge.loopback() as bridge:
        await bridge.push(x=1)
        panel = show(page, bridge)
        await page.shows(0, "x")
        monkeypatch.setattr(widget, "LEASE", 0.05)
        await watches(bridge, 0)
        assert not any(panel._shell.events.callbacks.values())
        assert panel._views == {}
        assert all(not kernel._views and not kernel._ticking for kernel in panel._kernels)
        monkeypatch.setattr(widget, "LEASE", 150.0)
        await bridge.push(y=1)
        page.ask("here")
        await page.until(lambda: {"kind": "forgotten", "view": "v"} in page.messages)
        page.ask("hello")
        page.ask("open", kernel=0)
        await page.shows(0, "x", "y")


async def test_a_page_that_says_it_is_there_is_followed(page: Page) -> None:
    async with Bridge.loopback() as bridge:
        panel = show(page, bridge)
        await watches(bridge, 1)
        panel._views["v"] = -widget.LEASE  # when it was heard last
        page.ask("here")
        panel._end_silent_views()
        assert "v" in panel._views
        await bridge.run("x = 1")
        await page.shows(0, "x")
        assert {"kind": "forgotten", "view": "v"} not in page.messages


async def test_a_page_whose_signs_wait_behind_a_cell_is_followed(page: Page) -> None:
    """Without subshells, the kernel of the notebook hears nothing while it runs a cell."""
    async with Bridge.loopback() as bridge:
        panel = show(page, bridge)
        await watches(bridge, 1)
        panel._shell.events.trigger("pre_run_cell", None)
        panel._views["v"] = -widget.LEASE
        panel._end_silent_views()
        assert "v" in panel._views
        panel._shell.events.trigger("post_run_cell", None)
        panel._end_silent_views()
        assert "v" in panel._views
        panel._views["v"] = -widget.LEASE  # and then it is silent
        await watches(bridge, 0)


class ViewsEndedMeanwhile(dict[str, float]):
    """Views that the loop of a kernel ends just after another thread has looked at them."""

    def __init__(self, panel: Any, looks: int) -> None:
        super().__init__(panel._views)
        self.ending = threading.Thread(target=panel._end_views, args=[["v"]])
        self.looks = looks  # until they are ended

    def _end(self) -> None:
        self.looks -= 1
        if self.looks == 0:
            self.ending.start()
            self.ending.join(0.5)  # it ends now, or waits until the other thread is done

    def __contains__(self, view: object) -> bool:
        found = super().__contains__(view)
        self._end()
        return found

    def __iter__(self) -> Iterator[str]:
        found = list(super().__iter__())
        self._end()
        return iter(found)


@pytest.mark.parametrize(
    ("sign", "looks"),
    [
        (lambda page: page.ask("here"), 1),
        (lambda page: page.panel._shell.events.trigger("post_run_cell", None), 1),
        (lambda page: page.ask("open", kernel=0), 3),
    ],
    ids=["sign", "cell", "open"],
)
async def test_a_view_that_ends_meanwhile_stays_ended(
    page: Page, sign: Callable[[Page], None], looks: int
) -> None:
    async with Bridge.loopback() as bridge:
        panel = show(page, bridge)
        await watches(bridge, 1)
        panel._views = views = ViewsEndedMeanwhile(panel, looks)
        sign(page)
        await asyncio.to_thread(views.ending.join)
        assert dict(views) == {}
        assert not any(panel._shell.events.callbacks.values())
        await watches(bridge, 0)
        assert all(not kernel._views for kernel in panel._kernels)


async def test_a_view_ends_although_its_hooks_were_removed(page: Page) -> None:
    async with Bridge.loopback() as bridge:
        panel = show(page, bridge)
        await watches(bridge, 1)
        for hooks in panel._shell.events.callbacks.values():
            hooks.clear()
        page.ask("bye")
        await watches(bridge, 0)
        assert page.refused == []
        assert panel._views == {}


async def test_close_ends_the_watch_and_leaves_the_bridge_open(page: Page) -> None:
    async with Bridge.loopback() as bridge:
        await bridge.push(x=1)
        panel = show(page, bridge)
        await page.shows(0, "x")
        panel.close()
        panel.close()
        await watches(bridge, 0)
        assert await bridge.pull("x") == 1
        tasks = [task for task in asyncio.all_tasks() if "panel" in repr(task.get_coro())]
        assert tasks == []


async def test_a_bridge_that_is_closed_is_shown_as_closed(page: Page) -> None:
    async with Bridge.loopback() as bridge:
        await bridge.push(x=1)
        show(page, bridge)
        await page.shows(0, "x")
    head = await page.until(lambda: page.heads[0]["state"] == "closed" and page.heads[0])
    assert head["note"].startswith("The bridge was closed")
    await page.shows(0)
    page.ask("refresh", kernel=0)
    page.ask("pull", kernel=0, name="x", target="x")
    assert "BridgeClosed" in (await page.job())["text"]


async def test_a_sync_bridge_that_is_closed_is_shown_as_closed(page: Page) -> None:
    with SyncBridge.loopback() as kernel:
        kernel["x"] = 1
        show(page, kernel)
        await page.shows(0, "x")
    await page.until(lambda: page.heads[0]["state"] == "closed")
    page.ask("look", kernel=0, name="x")  # its loop has ended: nothing happens


async def test_the_panel_does_not_hear_of_a_restart_in_the_callers_place(page: Page) -> None:
    async with Bridge.loopback() as bridge:
        await bridge.push(x=1)
        show(page, bridge)
        await page.shows(0, "x")
        await bridge._transport.replace(10)  # as another program does it
        head = await page.until(lambda: "restarted" in page.heads[0]["note"] and page.heads[0])
        assert "Choose Refresh" in head["note"]
        with pytest.raises(bridgehead.KernelRestarted):
            await bridge.pull("x")
        await bridge.push(y=1)
        page.ask("refresh", kernel=0)
        await page.shows(0, "y")
        await page.until(lambda: page.heads[0]["note"] == "")


async def test_after_a_cell_of_the_notebook_its_names_and_pushes_are_shown(page: Page) -> None:
    async with Bridge.loopback() as bridge:
        panel = show(page, bridge)
        await page.shows(0)
        panel._shell.user_ns.update(mine=1, _hidden=2, np=np, array=np.array, kernel=bridge)
        await bridge.push(x=1)  # which runs no cell in the kernel
        panel._shell.events.trigger("post_run_cell", None)
        await page.shows(0, "x")
        await page.until(lambda: page.notebook == [("mine", "int")])
        # A hint says what a pull would replace, whatever it is.
        assert page.taken == ["mine", "_hidden", "np", "array", "kernel"]


async def test_a_kernel_that_only_replies_is_listed_when_asked(page: Page) -> None:
    async with Bridge.loopback() as bridge:
        set_capabilities(bridge, pushes=False)
        show(page, bridge)
        await page.until(lambda: "does not report" in page.heads.get(0, {}).get("note", ""))
        await bridge.push(x=1)
        page.ask("refresh", kernel=0)
        await page.shows(0, "x")


# ------------------------------------------------------------ texts


def test_names_that_can_be_used() -> None:
    assert [usable(name) for name in ("x", "é", "class", "a b", "", "x" * 201, 5)] == [
        True,
        True,
        *[False] * 5,
    ]


def test_an_error_is_one_short_line() -> None:
    error = ValueError("first\nsecond\x1b[31m" + "x" * 2000)
    error.add_note("and a note")
    text = why(error)
    assert text.startswith("ValueError: first second�[31m")
    assert len(text) <= LONGEST


def test_a_row_has_what_the_page_sorts_by() -> None:
    row = followed_kernel.row_of(Name("x", "numpy.ndarray", shape=(10**12, 10**12), bytes=10**30))
    assert (row[6], row[7]) == (1 << 53, 1 << 53)
    assert followed_kernel.row_of(Name("x", "Own"))[6:8] == (-1, -1)
    keys = {followed_kernel.row_of(Name(name, "int"))[0] for name in ("x", "x ", "a b")}
    assert len(keys) == 3


def test_names_that_a_pull_would_replace() -> None:
    hidden = {"In": [], "get_ipython": print, "_i1": "", "_": 1}
    user_ns = {**hidden, "train": 1, "dumps": print, "_own": 2, "a b": 3, 4: 5}
    shell = SimpleNamespace(user_ns=user_ns, user_ns_hidden=hidden)
    assert taken_names(shell) == ["In", "get_ipython", "train", "dumps", "_own"]


def test_names_to_push_are_those_that_the_user_gave() -> None:
    def own() -> None: ...

    own.__module__ = "__main__"
    hidden = {"In": []}
    user_ns = {"x": 1, "np": np, "dumps": pd.DataFrame, "own": own, "_": 2, "a b": 3, **hidden}
    shell = SimpleNamespace(user_ns=user_ns, user_ns_hidden=hidden)
    assert notebook_names(shell) == [("own", "function"), ("x", "int")]


async def test_a_kernel_elsewhere_reports_its_memory_after_each_cell(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(followed_kernel.FollowedKernel, "_is_here", False)
    async with Bridge.loopback() as bridge:
        show(page, bridge, opened=False)
        await page.until(lambda: page.heads.get(0, {}).get("memory"))


# ------------------------------------------------------------ bridges that were closed


async def test_a_kernel_whose_names_are_not_shown_is_shown_as_closed(page: Page) -> None:
    with SyncBridge.loopback() as bridge:
        show(page, bridge, opened=False)
        await page.until(lambda: page.heads)
        await asyncio.to_thread(bridge.close)
        head = await page.until(lambda: page.heads[0]["state"] == "closed" and page.heads[0])
        assert "open another one" in head["note"]


async def test_a_button_of_a_kernel_whose_loop_has_ended_says_so(page: Page) -> None:
    with SyncBridge.loopback() as bridge:
        show(page, bridge)
        await asyncio.to_thread(bridge.close)
        page.ask("pull", kernel=0, name="x", target="x")
        job = await page.job()
        assert job["state"] == "failed"
        assert "The bridge was closed" in job["text"]


async def test_a_view_that_opens_after_the_loop_has_ended_shows_the_kernel_as_closed(
    page: Page,
) -> None:
    with SyncBridge.loopback() as bridge:
        panel = bridgehead.panel(bridge)
        page.panel = panel
        await asyncio.to_thread(bridge.close)
        page.ask("hello")
        head = await page.until(lambda: page.heads.get(0))
        assert (head["state"], "was closed" in head["note"]) == ("closed", True)


async def test_a_watch_that_ends_late_does_not_hide_the_next_one(page: Page) -> None:
    async with Bridge.loopback() as bridge:
        kernel = show(page, bridge)._kernels[0]
        await watches(bridge, 1)
        earlier, aclose = kernel._watch, type(kernel._watch).aclose
        begun = asyncio.Event()

        async def late() -> None:
            await begun.wait()
            await aclose(earlier)

        earlier.aclose = late
        page.ask("shut", kernel=0)
        page.ask("open", kernel=0)
        await page.until(lambda: kernel._watch not in (None, earlier))
        begun.set()
        await watches(bridge, 1)
        assert kernel._watch is not None


def test_a_class_may_have_anything_as_its_module() -> None:
    odd = type("Odd", (), {"__module__": None})
    shell = SimpleNamespace(user_ns={"x": odd(), 1: 2})
    assert notebook_names(shell) == [("x", "Odd")]
