"""The options of call: the function's outputs, the kernel's namespace, names that collide.

Rule: each test runs on a loopback and on a real kernel, over each lane, unless it says why not.
"""

from __future__ import annotations

import asyncio
import functools
import sys
import textwrap
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

from bridgehead import Bridge, EncodeError, Fleet, KernelDied, RemoteError, SyncBridge
from bridgehead._transports.messages import Message
from support.elsewhere import MAJORS
from support.kit import reported_within, until, wired

# A kernel cannot import test modules; their functions and classes are pickled by value.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

ELSEWHERE = "of this program"  # what no function in the kernel's namespace may see
MIB = 1 << 20


class Heard:
    """What an ``on_output`` was called with."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    def __call__(self, message: Message) -> None:
        self.messages.append(message)

    def text(self, stream: str = "stdout") -> str:
        return "".join(
            message.content["text"]
            for message in self.messages
            if message.type == "stream" and message.content["name"] == stream
        )


@pytest.fixture
def heard() -> Heard:
    return Heard()


# ---------------------------------------------------------------- on_output


def chatty(value: Any) -> int:
    print("out", len(value))
    print("err", file=sys.stderr)
    return len(value)


@pytest.mark.parametrize("nbytes", [3, 2 * MIB, 20 * MIB])  # inline, 20 MiB take six messages
async def test_the_outputs_of_a_function_arrive_at_its_caller(
    bridge: Bridge, heard: Heard, nbytes: int
) -> None:
    assert await bridge.call(chatty, bytes(nbytes), on_output=heard) == nbytes
    assert heard.text() == f"out {nbytes}\n"
    assert heard.text("stderr") == "err\n"
    assert {message.type for message in heard.messages} == {"stream"}


async def test_the_outputs_of_a_function_with_a_large_value_arrive(
    bridge: Bridge, heard: Heard
) -> None:
    def large() -> bytes:
        print("large")
        return bytes(10 * MIB)

    assert len(await bridge.call(large, on_output=heard)) == 10 * MIB
    assert heard.text() == "large\n"


async def test_what_a_function_displays_and_clears_arrives(kernel: Bridge, heard: Heard) -> None:
    """A loopback has no display."""

    def show() -> None:
        from IPython.display import clear_output, display

        handle = display(1.5, display_id=True)
        handle.update(2.5)
        clear_output()

    await kernel.call(show, on_output=heard)
    assert [message.type for message in heard.messages] == [
        *("display_data", "update_display_data", "clear_output")
    ]
    assert heard.messages[0].content["data"]["text/plain"] == "1.5"


async def test_no_other_output_arrives_at_the_caller_of_a_function(
    bridge: Bridge, heard: Heard
) -> None:
    other, quiet = Heard(), Heard()
    await asyncio.gather(
        bridge.run("print('a cell')"),
        bridge.call(print, "mine", on_output=heard),
        bridge.call(print, "another", on_output=other),
        bridge.call(len, "abc", on_output=quiet),
        bridge.call(print, "no one's"),
        bridge.pull("print('an expression')"),
        bridge.run("print('a cell')"),
    )
    assert (heard.text(), other.text(), quiet.messages) == ("mine\n", "another\n", [])


async def test_outputs_of_a_function_arrive_while_it_runs(kernel: Bridge, heard: Heard) -> None:
    """The loopback serves one message at a time, so nothing could end the function."""
    await kernel.push(go=False)

    def waits() -> str:
        import time

        print("first", flush=True)
        while not go:  # type: ignore[name-defined] # noqa: F821
            time.sleep(0.01)
        return "done"

    running = asyncio.ensure_future(kernel.call(waits, namespace=True, on_output=heard))
    await until(lambda: heard.messages)
    assert not running.done()
    await kernel.push(go=True, now=True)
    assert await running == "done"
    assert heard.text() == "first\n"


async def test_the_outputs_of_a_function_that_raises_arrive_before_its_error(
    bridge: Bridge, heard: Heard
) -> None:
    def fails() -> None:
        print("before")
        raise LookupError("no")

    with pytest.raises(RemoteError, match="LookupError: no"):
        await bridge.call(fails, on_output=heard)
    assert heard.text() == "before\n"


async def test_an_exception_of_on_output_is_raised_from_call(bridge: Bridge) -> None:
    def on_output(message: Message) -> None:
        raise LookupError("in the callback")

    def prints(fails: bool) -> None:
        print(1)
        get_ipython().user_ns["finished"] = fails  # type: ignore[name-defined] # noqa: F821
        if fails:
            raise ValueError

    for fails in (False, True):
        with pytest.raises(LookupError, match="in the callback"):
            await bridge.call(prints, fails, namespace=True, on_output=on_output)
        assert await bridge.pull("finished") is fails


async def test_on_output_is_not_called_after_a_timeout_or_a_cancel_of_call(
    bridge: Bridge, heard: Heard
) -> None:
    def counts() -> None:
        import time

        for i in range(20):
            print(i, flush=True)
            time.sleep(0.02)

    with pytest.raises(TimeoutError, match="call timed out after"):
        await bridge.call(counts, on_output=heard, timeout=0.2)
    cancelled = asyncio.ensure_future(bridge.call(counts, on_output=heard))
    await asyncio.sleep(0)
    cancelled.cancel()
    count = len(heard.messages)
    assert await bridge.call(len, "abc") == 3
    assert len(heard.messages) == count


@pytest.mark.timings(last_outputs=0.2)
async def test_lost_outputs_do_not_hold_the_value_of_a_function_up(
    kernel: Bridge, heard: Heard, tmp_path: Path
) -> None:
    async with wired(kernel, tmp_path) as (bridge, wire):
        assert await bridge.call(chatty, "abc", on_output=heard) == 3
        assert heard.text() == "out 3\n"
        wire.deaf = True
        assert await bridge.call(chatty, "abc", on_output=heard) == 3
        with pytest.raises(RemoteError, match="ZeroDivisionError"):
            await bridge.call(lambda: 1 / 0, on_output=heard)
        assert heard.text() == "out 3\n"


async def test_a_kernel_that_dies_in_a_function_with_outputs_is_reported_at_once(
    live: Bridge, heard: Heard
) -> None:
    def dies() -> None:
        import os
        import time

        print("before", flush=True)
        time.sleep(0.3)
        os._exit(1)

    with pytest.raises(KernelDied):
        await live.call(dies, on_output=heard)
    assert heard.text() == "before\n"
    await live.restart()
    assert await live.call(chatty, "abc", on_output=heard) == 3
    assert heard.text() == "before\nout 3\n"


async def chatty_later(value: Any) -> int:
    print("out", len(value))
    await asyncio.sleep(0.01)
    print("err", file=sys.stderr)
    return len(value)


@pytest.mark.parametrize("nbytes", [3, 20 * MIB])
async def test_the_outputs_of_an_async_function_arrive_at_its_caller(
    bridge: Bridge, heard: Heard, nbytes: int
) -> None:
    assert await bridge.call(chatty_later, bytes(nbytes), on_output=heard) == nbytes
    assert (heard.text(), heard.text("stderr")) == (f"out {nbytes}\n", "err\n")
    assert {message.type for message in heard.messages} == {"stream"}
    assert not bridge._transport.dispatcher._listening


async def test_the_outputs_of_a_task_arrive_before_it_is_done(bridge: Bridge, heard: Heard) -> None:
    plain = Heard()
    tasks = [
        bridge.submit(chatty_later, "abc", on_output=heard),
        bridge.submit(chatty, "abcd", on_output=plain),
    ]
    assert await asyncio.gather(*tasks) == [3, 4]
    assert (heard.text(), heard.text("stderr")) == ("out 3\n", "err\n")
    assert (plain.text(), plain.text("stderr")) == ("out 4\n", "err\n")


async def test_outputs_of_an_async_function_arrive_while_it_runs(
    bridge: Bridge, heard: Heard
) -> None:
    await bridge.push(go=False)

    async def waits() -> str:
        from asyncio import sleep

        print("first", flush=True)
        while not go:  # type: ignore[name-defined] # noqa: F821
            await sleep(0.01)
        return "done"

    running = asyncio.ensure_future(bridge.call(waits, namespace=True, on_output=heard))
    await until(lambda: heard.messages)
    assert not running.done()
    await bridge.push(go=True)
    assert await running == "done"
    assert heard.text() == "first\n"


async def test_the_outputs_of_an_async_function_that_raises_arrive_before_its_error(
    bridge: Bridge, heard: Heard
) -> None:
    async def fails(when: str) -> None:
        print("before", when)
        if when == "later":
            await asyncio.sleep(0.01)
        raise LookupError("no")

    for when in ("at once", "later"):
        with pytest.raises(RemoteError, match="LookupError: no"):
            await bridge.call(fails, when, on_output=heard)
    with pytest.raises(RemoteError, match="argument"):
        await bridge.call(fails, on_output=heard)
    assert heard.text() == "before at once\nbefore later\n"


async def speaks(name: str, shows: bool) -> None:
    """Print in turn with others that do; a task that it starts does so, too."""

    async def says(what: str) -> None:
        for _ in range(5):
            print(name, what)
            if shows:
                from IPython.display import display

                display(f"{name} {what}")
            await asyncio.sleep(0.01)

    await asyncio.gather(says("itself"), says("a child"))
    await asyncio.to_thread(print, name, "a thread")


SPOKEN = [*["itself", "a child"] * 5, "a thread"]


async def test_no_other_output_arrives_at_the_caller_of_an_async_function(
    bridge: Bridge, heard: Heard
) -> None:
    other, quiet = Heard(), Heard()
    tasks = [
        bridge.submit(speaks, "one", False, on_output=heard),
        bridge.submit(speaks, "two", False, on_output=other),
        bridge.submit(speaks, "three", False),
        bridge.submit(asyncio.sleep, 0.05, on_output=quiet),
    ]
    result = await bridge.run("print('a cell')")
    await asyncio.gather(*tasks)
    assert result.stdout == "a cell\n"
    for said, name in (heard, "one"), (other, "two"):
        expected = [f"{name} {what}" for what in SPOKEN]
        if bridge.info.kernel.startswith("loopback"):
            expected.pop()  # a loopback takes the outputs of its own thread alone
        assert sorted(said.text().splitlines()) == sorted(expected)
    assert quiet.messages == []


@pytest.mark.parametrize("kernel_name", MAJORS, indirect=True)
async def test_a_cell_and_a_task_that_run_at_once_get_their_own_outputs(
    live: Bridge, heard: Heard
) -> None:
    """Both await, so their steps take turns. A loopback has no cell that awaits."""
    other = Heard()
    tasks = [
        live.submit(speaks, "one", True, on_output=heard),
        live.submit(speaks, "two", True, on_output=other),
        live.submit(speaks, "three", True),
    ]
    result = await live.run(
        "import asyncio\n"
        "from IPython.display import display\n"
        "for n in range(20):\n"
        "    print(n); display(n); await asyncio.sleep(0.005)"
    )
    await asyncio.gather(*tasks)
    assert result.stdout.split() == [str(n) for n in range(20)]
    shown = [one["data"]["text/plain"] for one in result.outputs if "data" in one]
    assert shown == [str(n) for n in range(20)]
    for said, name in (heard, "one"), (other, "two"):
        texts = [f"{name} {what}" for what in SPOKEN]
        assert sorted(said.text().splitlines()) == sorted(texts)
        displays = [one for one in said.messages if one.type == "display_data"]
        found = [one.content["data"]["text/plain"].strip("'") for one in displays]
        assert sorted(found) == sorted(texts[:-1])
    await live.run("display('after')")
    hooks = "get_ipython().display_pub._hooks"
    assert await live.pull(hooks) == []


@pytest.mark.timings(last_outputs=0.2)
async def test_lost_outputs_do_not_hold_the_value_of_an_async_function_up(
    kernel: Bridge, heard: Heard, tmp_path: Path
) -> None:
    async with wired(kernel, tmp_path) as (bridge, wire):
        wire.deaf = True
        assert await bridge.call(chatty_later, "abc", on_output=heard) == 3
        assert heard.messages == []
        listening = bridge._transport.dispatcher._listening.values()
        assert not any(one.handlers.lasting for one in listening)


async def test_on_output_is_not_called_after_a_cancel_of_an_async_function(
    bridge: Bridge, heard: Heard
) -> None:
    async def counts() -> None:
        for i in range(1000):
            print(i, flush=True)
            await asyncio.sleep(0.01)

    with pytest.raises(TimeoutError, match="call timed out after"):
        await bridge.call(counts, on_output=heard, timeout=0.3)
    task = bridge.submit(counts, on_output=heard)
    await bridge.call(len, "abc")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    count = len(heard.messages)
    assert await bridge.call(len, "abc") == 3
    assert len(heard.messages) == count
    assert not bridge._transport.dispatcher._listening


# The end of the outputs would be waited for so long.
@pytest.mark.timings(last_outputs=60)
async def test_a_kernel_that_dies_in_an_async_function_with_outputs_is_reported_at_once(
    live: Bridge, heard: Heard
) -> None:
    async def dies() -> None:
        import os

        print("before", flush=True)
        await asyncio.sleep(0.3)
        os._exit(1)

    async with reported_within(3):
        with pytest.raises(KernelDied):
            await live.call(dies, on_output=heard)
    assert heard.text() == "before\n"


def test_on_output_of_call_runs_in_the_calling_thread() -> None:
    import threading

    threads: set[int] = set()
    with SyncBridge.loopback() as kernel:
        ref = kernel.call(
            chatty, "abc", keep="n", on_output=lambda _: threads.add(threading.get_ident())
        )
        assert ref.pull() == 3
        assert threads == {threading.get_ident()}


def test_a_sync_task_has_outputs(heard: Heard) -> None:
    with SyncBridge.loopback() as kernel:
        assert kernel.submit(chatty_later, "abc", on_output=heard).result(60) == 3
    assert (heard.text(), heard.text("stderr")) == ("out 3\n", "err\n")


# ---------------------------------------------------------------- namespace=True


async def test_global_names_of_a_function_are_the_kernels(bridge: Bridge) -> None:
    await bridge.push(rows=[1, 2, 3], helper=len)
    assert await bridge.call(lambda: helper(rows), namespace=True) == 3  # type: ignore[name-defined] # noqa: F821
    await bridge.run("def helper(value): return sum(value)")
    assert await bridge.call(lambda n: helper(rows) + n, 1, namespace=True) == 7  # type: ignore[name-defined] # noqa: F821
    with pytest.raises(RemoteError, match="NameError: name 'ELSEWHERE' is not defined"):
        await bridge.call(lambda: ELSEWHERE, namespace=True)
    assert await bridge.call(lambda: ELSEWHERE) == ELSEWHERE


async def test_global_statements_bind_in_the_kernel(bridge: Bridge) -> None:
    def count() -> None:
        global made, total
        total += 1
        made = [total]

    await bridge.push(total=1)
    await bridge.call(count, namespace=True)
    assert await bridge.pull("total", "made") == (2, [2])
    assert {name.name for name in await bridge.names()} == {"total", "made"}
    assert "total" not in globals()


async def test_a_closure_and_defaults_keep_their_values(bridge: Bridge) -> None:
    shift, unused = 10, []

    def outer(value: int, scale: int = 2, *, offset: Any = len(unused)) -> tuple[int, str]:
        def inner() -> int:
            return value * scale + shift + x  # type: ignore[name-defined, no-any-return] # noqa: F821

        return inner() + offset, outer.note  # type: ignore[attr-defined]

    outer.note = "kept"  # type: ignore[attr-defined]
    await bridge.push(x=100, shift="not this one")
    assert await bridge.call(outer, 3, namespace=True) == (116, "kept")
    assert await bridge.call(outer, 3, offset=1, scale=1, namespace=True) == (114, "kept")


async def test_a_function_that_calls_itself_stays_in_the_kernels_namespace(bridge: Bridge) -> None:
    def down(n: int) -> int:
        return base if n == 0 else down(n - 1)  # type: ignore[name-defined, no-any-return] # noqa: F821

    await bridge.push(base=7)
    assert await bridge.call(down, 3, namespace=True) == 7


async def test_a_decorated_function_is_a_function(bridge: Bridge) -> None:
    def doubled(function: Any) -> Any:
        @functools.wraps(function)
        def wrapper(*args: Any) -> Any:
            return factor * function(*args)  # type: ignore[name-defined] # noqa: F821

        return wrapper

    @doubled
    def plus(a: int, b: int) -> int:
        return a + b

    await bridge.push(factor=2)
    assert await bridge.call(plus, 1, 2, namespace=True) == 6


async def test_what_a_function_defines_uses_the_kernels_names(bridge: Bridge) -> None:
    """Functions, classes, comprehensions, and ``global`` statements inside of them."""

    def defines() -> Any:
        class Own:
            size = len(rows)  # type: ignore[name-defined] # noqa: F821

            def scaled(self) -> Any:
                global made
                made = __class__.__name__  # type: ignore[name-defined]
                return factor * self.size  # type: ignore[name-defined] # noqa: F821

        def inner(row: int) -> Any:
            global last
            last = row
            return row * factor  # type: ignore[name-defined] # noqa: F821

        exec("executed = 1", globals())
        return [inner(row) for row in rows], {r: r * factor for r in rows}, Own().scaled()  # type: ignore[name-defined] # noqa: F821

    async def defines_async() -> Any:
        async def inner() -> Any:
            return factor  # type: ignore[name-defined] # noqa: F821

        return [await inner() for _ in rows], [n async for n in later_rows()]  # type: ignore[name-defined] # noqa: F821

    await bridge.run("async def later_rows():\n    for row in rows: yield row")
    await bridge.push(rows=[1, 2], factor=10)
    expected = ([10, 20], {1: 10, 2: 20}, 20)
    assert await bridge.call(defines, namespace=True) == expected
    assert await bridge.pull("made", "last", "executed") == ("Own", 2, 1)
    assert await bridge.call(defines_async, namespace=True) == ([10, 10], [1, 2])


async def test_a_function_of_a_module_uses_the_kernels_names(bridge: Bridge) -> None:
    """cloudpickle would send its name alone, and it would see its module's names."""
    with pytest.raises(RemoteError, match="NameError: name '_whitespace_only_re'"):
        await bridge.call(textwrap.dedent, " a", namespace=True)
    await bridge.run("def wrap(text, width): return [text, width]\nTextWrapper = None")
    with pytest.raises(RemoteError, match="TypeError: 'NoneType' object is not callable"):
        await bridge.call(textwrap.wrap, "abc", namespace=True)


async def test_no_global_of_this_program_is_sent(bridge: Bridge) -> None:
    def uses(value: NeverSent | None = None) -> str:
        return type(LOCK).__name__

    await bridge.push(LOCK=5)
    assert await bridge.call(uses, namespace=True) == "int"
    with pytest.raises(EncodeError, match="lock"):
        await bridge.call(uses)


class NeverSent:
    def __reduce__(self) -> Any:
        raise TypeError("it was sent")


LOCK = __import__("threading").Lock()


class Callable:
    def __call__(self) -> None: ...

    def method(self) -> None: ...


@pytest.mark.parametrize(
    "function",
    [len, Callable(), Callable().method, Callable, functools.partial(chatty, "a"), "ref"],
    ids=["builtin", "instance", "method", "class", "partial", "ref"],
)
async def test_only_a_plain_function_has_global_names(loopback: Bridge, function: Any) -> None:
    function = loopback.ref("len") if function == "ref" else function
    with pytest.raises(TypeError, match="namespace=True takes a plain Python function"):
        await loopback.call(function, namespace=True)


async def test_namespace_is_true_or_false(loopback: Bridge) -> None:
    with pytest.raises(TypeError, match="namespace must be True or False, not str"):
        await loopback.call(chatty, "a", namespace="x")  # type: ignore[call-overload]


# ---------------------------------------------------------------- options and parameters


def fetch(url: str, timeout: float = 1.0, *, keep: str = "") -> tuple[str, float, str]:
    return url, timeout, keep


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("timeout", 5), ("keep", "x"), ("by_value", [textwrap])),
        *(("on_output", print), ("namespace", True), ("on_timeout", "interrupt")),
        # What is given may be false, or the default.
        *(("timeout", None), ("keep", False), ("keep", True), ("by_value", ())),
        *(("on_output", None), ("namespace", False), ("on_timeout", "leave")),
    ],
)
async def test_an_option_that_is_a_parameter_too_is_a_type_error(
    loopback: Bridge, name: str, value: Any
) -> None:
    source = f"def takes({name}=None): return {name}"
    scope: dict[str, Any] = {"__name__": "__main__"}
    exec(source, scope)
    function = scope["takes"]
    with pytest.raises(TypeError, match=rf"functools\.partial\(takes, {name}=…\)"):
        await loopback.call(function, **{name: value})
    with pytest.raises(TypeError, match=r"functools\.partial"):
        await loopback.call(functools.partial(function), **{name: value})
    fleet = Fleet([loopback])
    with pytest.raises(TypeError, match=r"functools\.partial"):
        await fleet.call(function, **{name: value})
    if name not in ("timeout", "on_timeout"):
        with pytest.raises(TypeError, match=r"functools\.partial"):
            loopback.submit(function, **{name: value})
        with pytest.raises(TypeError, match=r"functools\.partial"):
            fleet.submit(function, **{name: value})
    assert await loopback.call(function) is await loopback.submit(function) is None
    assert not await loopback.names()


def test_only_an_option_that_is_given_collides_in_a_sync_bridge() -> None:
    def takes(keep: Any = 1, on_output: Any = 2) -> Any:
        return keep, on_output

    with SyncBridge.loopback() as kernel:
        assert kernel.submit(takes).result(30) == kernel.call(takes) == (1, 2)
        for work in (kernel.submit, kernel.call):
            with pytest.raises(TypeError, match=r"functools\.partial\(takes, keep=…\)"):
                work(takes, keep=None)
            with pytest.raises(TypeError, match=r"functools\.partial\(takes, on_output=…\)"):
                work(takes, on_output=None)


async def test_what_a_partial_has_bound_does_not_collide(bridge: Bridge) -> None:
    with_timeout = functools.partial(fetch, timeout=3.0)
    assert await bridge.call(with_timeout, "a", timeout=20) == ("a", 3.0, "")
    positional = functools.partial(fetch, "b", 2.0)
    assert await bridge.call(positional, timeout=20) == ("b", 2.0, "")
    nested = functools.partial(functools.partial(fetch, keep="k"), timeout=3.0)
    assert await (await bridge.call(nested, "c", keep="kept")).pull() == ("c", 3.0, "k")
    with pytest.raises(TypeError, match=r"functools\.partial\(fetch, keep=…\)"):
        await bridge.call(with_timeout, "a", keep="x")


async def test_options_are_the_calls_where_the_function_names_none_of_them(bridge: Bridge) -> None:
    def anything(*args: Any, **kwargs: Any) -> Any:
        return args, kwargs

    def by_place(timeout: float, /) -> float:
        return timeout

    assert await bridge.call(anything, 1, x=2, timeout=20) == ((1,), {"x": 2})
    assert await bridge.call(by_place, 1.0, timeout=20) == 1.0
    # The signature of these builtins is not known, or is of no use.
    assert await bridge.call(max, 1, 2, timeout=20) == 2
    assert await bridge.call(dict, a=1, timeout=20) == {"a": 1}
    assert np.array_equal(await bridge.call(np.arange, 3, timeout=20), np.arange(3))
