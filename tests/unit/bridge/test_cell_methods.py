"""Cells with limits, names and input, on a loopback.

Rule: as in a real kernel, of which ``kernel/bridge/test_cell_limits.py`` has the rest.
"""

from __future__ import annotations

import asyncio
import gc
import pickle
import threading
import weakref
from typing import Any

import pytest

from bridgehead import (
    Bridge,
    DecodeError,
    EncodeError,
    NotSupported,
    RemoteError,
    RunTimeout,
    SyncBridge,
    UntrustedPayload,
)
from bridgehead._connection.outputs import CellOutputs
from bridgehead._transports.messages import Message
from support.kit import until

SLOW = "import time\nprint('begun')\ntime.sleep(0.4)\nended = True"


# ---------------------------------------------------------------- the deadline


async def test_a_deadline_raises_with_the_outputs_so_far(loopback: Bridge) -> None:
    with pytest.raises(RunTimeout, match=r"timed out after 0.1 s: .* may still run") as caught:
        await loopback.run(SLOW, timeout=0.1)
    assert caught.value.result.stdout == "begun\n"
    assert caught.value.result.execution_count == 1
    assert isinstance(caught.value, TimeoutError)
    assert await loopback.pull("ended")  # behind the cell


async def test_a_cell_that_goes_on_has_sent_the_first_half(loopback: Bridge) -> None:
    with pytest.raises(RunTimeout, match="may still run") as caught:
        await loopback.run("print('x' * 784)\n" + SLOW, max_output=1000, timeout=0.1)
    assert (caught.value.result.stdout, caught.value.result.dropped) == ("x" * 500, 0)
    assert await loopback.pull("ended")


async def test_a_cell_that_was_not_sent_never_runs(loopback: Bridge) -> None:
    slow = loopback.stream(SLOW)
    await anext(slow)
    with pytest.raises(RunTimeout, match="was not sent"):
        await loopback.run("ran = True", timeout=0.05)
    await loopback.pull("ended")
    assert not await loopback.exists("ran")


async def test_the_error_of_a_deadline_can_be_pickled(loopback: Bridge) -> None:
    with pytest.raises(RunTimeout) as caught:
        await loopback.run(SLOW, timeout=0.1)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (str(copy), copy.result) == (str(caught.value), caught.value.result)


async def test_a_loopback_cannot_interrupt_a_cell(loopback: Bridge) -> None:
    with pytest.raises(NotSupported, match="no process"):
        await loopback.run("ran = True", on_timeout="interrupt")
    assert not await loopback.exists("ran")


async def test_a_timeout_error_of_on_output_is_its_own(loopback: Bridge) -> None:
    def fail(message: object) -> None:
        raise TimeoutError("mine")

    with pytest.raises(TimeoutError, match="mine") as caught:
        await loopback.run("print(1)", on_output=fail, timeout=60)
    assert type(caught.value) is TimeoutError


# ---------------------------------------------------------------- limits


async def test_the_middle_of_the_output_is_dropped_and_counted(loopback: Bridge) -> None:
    messages: list[Any] = []
    result = await loopback.run(
        "for n in range(10_000): print(n)", max_output=40, on_output=messages.append
    )
    head, line, tail = result.stdout.partition("\n[48,850 characters dropped]\n")
    assert line
    whole = "".join(f"{n}\n" for n in range(10_000))
    assert head == whole[:20]
    assert tail == whole[-20:]
    assert result.dropped == len(whole) - 40
    assert "".join(message.text for message in messages) == result.stdout


async def test_streams_share_the_limit_and_keep_their_order(loopback: Bridge) -> None:
    code = "import sys\nfor n in range(100):\n    print('o'); print('e', file=sys.stderr)"
    result = await loopback.run(code, max_output=8)
    assert result.stdout.count("o\n") == 2
    assert result.stderr.count("e\n") == 2
    assert result.dropped == 392


async def test_short_output_is_whole(loopback: Bridge) -> None:
    result = await loopback.run("print('all')\n7", max_output=1000)
    assert (result.stdout, result.dropped, result.data["text/plain"]) == ("all\n", 0, "7")


async def test_no_output_at_all_may_be_kept(loopback: Bridge) -> None:
    result = await loopback.run("print('all')", max_output=0)
    assert (result.stdout, result.dropped) == ("\n[4 characters dropped]\n", 4)


async def test_a_large_value_is_dropped_as_a_whole(loopback: Bridge) -> None:
    result = await loopback.run("print('printed')\n'x' * 10_000", max_output=100)
    assert (result.data, result.stdout.startswith("printed\n")) == ({}, True)
    assert result.dropped > 10_000


async def test_a_line_stands_for_a_dropped_value(loopback: Bridge) -> None:
    result = await loopback.run("'x' * 10_000", max_output=100)
    assert [output["output_type"] for output in result.outputs] == ["stream"]
    assert result.stdout == f"\n[{result.dropped:,} characters dropped]\n"


@pytest.mark.parametrize(("evalue", "shown"), [("short", ["error"]), ("x" * 10_000, [])])
async def test_a_traceback_takes_no_room_from_what_a_cell_printed(
    loopback: Bridge, evalue: str, shown: list[str]
) -> None:
    printed = "".join(f"{n}\n" for n in range(3000))
    code = f"for n in range(3000): print(n)\nraise ValueError({evalue!r})"
    with pytest.raises(RemoteError) as caught:
        await loopback.run(code, max_output=4000)
    result: Any = caught.value.result
    assert [output["output_type"] for output in result.outputs] == ["stream", *shown]
    assert result.stdout.startswith(printed[:2000])
    assert result.stdout.endswith(printed[-2000:])
    assert result.dropped == len(printed) - 4000
    assert evalue in caught.value.traceback[-1]


async def test_a_cell_that_printed_nothing_has_no_line(loopback: Bridge) -> None:
    with pytest.raises(RemoteError) as caught:
        await loopback.run("1 / 0", max_output=10)
    result: Any = caught.value.result
    assert (result.stdout, result.outputs, result.dropped) == ("", (), 0)


class Text(str):
    """A text that can be watched."""


def test_the_names_of_streams_hold_no_text() -> None:
    outputs, kept = CellOutputs(None, 100), weakref.WeakSet[Any]()
    for n in range(100):
        text = Text("x" * 1000)
        kept.add(text)
        outputs.feed(Message("stream", {"name": f"stream {n}", "text": text}))
    del text
    gc.collect()
    assert len(kept) == 0
    assert outputs.result(None, "data").dropped == 100 * 1000 - 100 - 100


async def test_what_the_program_prints_meanwhile_is_not_cut(
    loopback: Bridge, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = threading.Event()
    await loopback.run(
        "import time\nprint('go')\ntime.sleep(0.3)",
        max_output=4,
        on_output=lambda message: (begun.set(), print("of the program " * 10)),
    )
    assert begun.is_set()
    assert "of the program " * 10 in capsys.readouterr().out


async def test_a_failed_cell_has_its_limit_too(loopback: Bridge) -> None:
    with pytest.raises(RemoteError) as caught:
        await loopback.run("print('x' * 1000)\n1 / 0", max_output=10_000 - 9_990)
    assert caught.value.result.dropped > 900
    assert (await loopback.run("print('x' * 1000)")).stdout == "x" * 1000 + "\n"


@pytest.mark.parametrize("most", [-1, 1.5, "1", True])
async def test_a_wrong_limit_is_reported(loopback: Bridge, most: Any) -> None:
    with pytest.raises(ValueError, match="max_output must be"):
        await loopback.run("ran = True", max_output=most)
    assert not await loopback.exists("ran")


# ---------------------------------------------------------------- names and values


async def test_a_cell_gets_names_and_gives_values(loopback: Bridge) -> None:
    result = await loopback.run(
        "total = sum(rows)",
        push={"rows": [1, 2]},
        pull=["total", "total * 2", loopback.ref("rows")],
    )
    assert result.values == {"total": 3, "total * 2": 6, "rows": [1, 2]}
    assert await loopback.pull("rows") == [1, 2]


async def test_what_cannot_be_sent_keeps_the_cell_from_running(loopback: Bridge) -> None:
    with pytest.raises(EncodeError, match="generator"):
        await loopback.run("ran = True", push={"a": 1, "b": (n for n in ())})
    assert [name.name for name in await loopback.names()] == []


async def test_what_cannot_be_unpickled_keeps_the_cell_from_running(loopback: Bridge) -> None:
    class Fails:
        def __reduce__(self) -> Any:
            return divmod, (1, 0)

    with pytest.raises(RemoteError, match="ZeroDivisionError"):
        await loopback.run("ran = True", push={"a": 1, "b": Fails()})
    assert [name.name for name in await loopback.names()] == []


async def test_a_cell_that_does_not_compile_binds_nothing(loopback: Bridge) -> None:
    before = _stages()
    with pytest.raises(RemoteError, match="SyntaxError"):
        await loopback.run("1 +", push={"a": 1}, pull=["a"])
    assert not await loopback.exists("a")
    assert not _stages() - before


async def test_a_failed_cell_gives_no_values(loopback: Bridge) -> None:
    with pytest.raises(RemoteError, match="ZeroDivisionError") as caught:
        await loopback.run("1 / 0", push={"a": 1}, pull=["a"])
    assert caught.value.result.values == {}
    assert await loopback.pull("a") == 1


async def test_a_value_that_is_missing_is_an_error_of_a_cell_that_ran(loopback: Bridge) -> None:
    with pytest.raises(RemoteError, match="'missing' is not defined") as caught:
        await loopback.run("print('ran')", pull=["missing"])
    assert caught.value.result.stdout == "ran\n"


async def test_large_values_come_in_parts() -> None:
    async with Bridge.loopback(lane="inline") as bridge:
        large = bytes(range(256)) * 40_000
        result = await bridge.run("b = a[::-1]", push={"a": large}, pull=["b", "len(a)"])
        assert result.values == {"b": large[::-1], "len(a)": len(large)}


async def test_only_data_is_opened_of_a_kernel_that_is_not_trusted() -> None:
    async with Bridge.loopback(trust="data") as bridge:
        result = await bridge.run("b = a", push={"a": [1]}, pull=["b"])
        assert result.values == {"b": [1]}
        with pytest.raises(UntrustedPayload, match="not data") as caught:
            await bridge.run("print('ran')", pull=["print"])
        assert caught.value.result.stdout == "ran\n"


async def test_values_that_cannot_be_opened_cost_no_output(loopback: Bridge) -> None:
    code = "class Odd:\n    def __reduce__(self): return eval, ('1/0',)\nprint('ran')"
    with pytest.raises(DecodeError, match="ZeroDivisionError") as caught:
        await loopback.run(code, pull=["Odd()"])
    assert caught.value.result.stdout == "ran\n"


@pytest.mark.parametrize("options", [{"push": {"a": 1}}, {"max_output": 5}])
async def test_an_empty_cell_takes_nothing(loopback: Bridge, options: Any) -> None:
    with pytest.raises(ValueError, match="the cell is empty"):
        await loopback.run(" \n", **options)


async def test_wrong_arguments_are_reported(loopback: Bridge) -> None:
    wrong: Any = "ab"
    with pytest.raises(TypeError, match="takes a list"):
        await loopback.run("1", pull=wrong)
    with pytest.raises(TypeError, match="takes a mapping"):
        await loopback.run("1", push=wrong)
    with pytest.raises(ValueError, match="not a Python identifier"):
        await loopback.run("1", push={"a b": 1})
    with pytest.raises(ValueError, match=r"run\(pull=\) takes no expression with await"):
        await loopback.run("ran = True", pull=["1", "await ran()"])
    with pytest.raises(ValueError, match=r"the cell has '\\udcff', half of .*, at index 5, and no"):
        await loopback.run("x = '\udcff'")
    with pytest.raises(TypeError, match="store_history must be"):
        await loopback.run("1", store_history=wrong)
    assert not await loopback.exists("ran")


async def test_no_names_and_no_values_are_nothing(loopback: Bridge) -> None:
    result = await loopback.run("7", push={}, pull=[])
    assert (result.data["text/plain"], result.values) == ("7", {})


def _stages() -> set[str]:
    """Return what the remote parts of this process keep for cells, also for earlier tests."""
    import sys

    from bridgehead._protocol.bootstrap import remote_source

    return {*sys.modules[remote_source()[0]].staged}


async def test_what_a_cell_never_takes_is_dropped(loopback: Bridge) -> None:
    before = _stages()
    slow = loopback.stream(SLOW)
    await anext(slow)
    with pytest.raises(RunTimeout):
        await loopback.run("1", push={"a": 1}, timeout=0.1)
    await loopback.pull("ended")
    assert not _stages() - before
    assert not await loopback.exists("a")


# ---------------------------------------------------------------- history and input


async def test_a_cell_may_stay_out_of_the_history(loopback: Bridge) -> None:
    await loopback.run("1")
    await loopback.run("2", store_history=False)
    assert (await loopback.run("3")).execution_count == 2


async def test_input_is_answered(loopback: Bridge) -> None:
    asked: list[Any] = []

    async def answer(prompt: str, password: bool) -> str:
        await asyncio.sleep(0)
        asked.append((prompt, password))
        return f"answer {len(asked)}"

    result = await loopback.run("input('one? ') + ', ' + input()", on_input=answer)
    assert result.data["text/plain"] == "'answer 1, answer 2'"
    assert asked == [("one? ", False), ("", False)]
    with pytest.raises(RemoteError, match="does not answer"):
        await loopback.run("input()")


async def test_what_on_input_raises_ends_the_cell(loopback: Bridge) -> None:
    def fail(prompt: str, password: bool) -> str:
        raise LookupError("no answer")

    with pytest.raises(LookupError, match="no answer"):
        await loopback.run("input()\nran = True", on_input=fail)
    assert not await loopback.exists("ran")
    wrong: Any = lambda prompt, password: 5  # noqa: E731
    with pytest.raises(TypeError, match="must return a string, not int"):
        await loopback.run("input()", on_input=wrong)


async def test_an_answer_may_take_its_time(loopback: Bridge) -> None:
    async def answer(prompt: str, password: bool) -> str:
        await asyncio.sleep(0.2)
        return "late"

    async def fail(prompt: str, password: bool) -> str:
        await asyncio.sleep(0.05)
        raise LookupError("no answer")

    result = await loopback.run("input()", on_input=answer)
    assert result.data["text/plain"] == "'late'"
    with pytest.raises(LookupError, match="no answer"):
        await loopback.run("input()\nran = True", on_input=fail)
    assert not await loopback.exists("ran")


async def test_only_the_last_question_is_answered(loopback: Bridge) -> None:
    """A kernel may ask without waiting for the answer."""
    begun, ended = [], []

    async def answer(prompt: str, password: bool) -> str:
        begun.append(prompt)
        try:
            await asyncio.sleep(3600 if prompt != "last" else 0)
        finally:
            ended.append(prompt)
        return f"answer to {prompt}"

    cell = asyncio.ensure_future(loopback.run("input('first')", on_input=answer))
    await until(lambda: begun)
    pending = loopback._transport.dispatcher.pending.values()
    handlers = [one.handlers for one in pending]
    ask = next(one.on_input for one in handlers if one.on_input is not None)
    for n in range(100):
        ask({"prompt": f"question {n}"})
        await asyncio.sleep(0)
    ask({"prompt": "last"})
    assert (await cell).data["text/plain"] == "'answer to last'"
    assert sorted(begun) == sorted(ended)


async def test_after_a_deadline_the_input_has_ended(loopback: Bridge) -> None:
    async def never(prompt: str, password: bool) -> str:
        await asyncio.sleep(3600)
        return ""

    with pytest.raises(RunTimeout):
        await loopback.run(
            "try: input()\nexcept EOFError: ended = True", on_input=never, timeout=0.1
        )
    assert await loopback.pull("ended")


def test_a_blocking_bridge_asks_in_the_calling_thread() -> None:
    with SyncBridge.loopback() as kernel:
        threads: list[Any] = []

        def answer(prompt: str, password: bool) -> str:
            threads.append(threading.current_thread())
            return prompt.upper()

        seen: list[Any] = []
        result = kernel.run("print('a'); input('b')", on_input=answer, on_output=seen.append)
        assert result.data["text/plain"] == "'B'"
        assert threads == [threading.current_thread()]
        assert [message.type for message in seen] == ["stream", "stream", "execute_result"]

        def fail(prompt: str, password: bool) -> str:
            raise LookupError("no answer")

        with pytest.raises(LookupError):
            kernel.run("input()", on_input=fail)
        with pytest.raises(NotSupported, match="on_input=.* use now=True"):
            kernel.run("input()", on_input=lambda prompt, password: kernel["1"])
        answers = iter(["one"])
        with pytest.raises(RuntimeError, match="StopIteration"):
            kernel.run("input(); input()", on_input=lambda *asked: next(answers), timeout=30)
        assert kernel["1 + 1"] == 2
