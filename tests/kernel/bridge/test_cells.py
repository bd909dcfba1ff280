"""Cells that run as a user's would: outputs, errors, magics, messages.

Rule: one real kernel, shared by the tests.
"""

from __future__ import annotations

import asyncio
import itertools

import pytest

from bridgehead import Bridge, RemoteError


@pytest.fixture(scope="module")
async def kernel() -> object:
    async with Bridge.launch() as bridge:
        yield bridge


async def test_a_cell_returns_its_printed_text_and_its_value(kernel: Bridge) -> None:
    result = await kernel.run(
        "import sys\nprint('out')\nprint('err', file=sys.stderr)\n'value' * 2"
    )
    assert (result.stdout, result.stderr) == ("out\n", "err\n")
    assert result.data["text/plain"] == "'valuevalue'"
    assert [o["output_type"] for o in result.outputs] == ["stream", "stream", "execute_result"]
    following = await kernel.run("None")
    assert following.execution_count == (result.execution_count or 0) + 1
    assert (following.data, following.outputs, following.stdout) == ({}, (), "")


async def test_magics_top_level_await_and_history_work_as_in_a_notebook(kernel: Bridge) -> None:
    await kernel.run("import asyncio\nawait asyncio.sleep(0.01)\nslept = True")
    assert await kernel.pull("slept")
    assert "slept" in (await kernel.run("%who")).stdout
    await kernel.run("'kept'")
    assert (await kernel.run("_")).data["text/plain"] == "'kept'"
    assert (await kernel.run("!echo shell")).stdout.strip() == "shell"


async def test_rich_outputs_and_their_updates_are_in_the_result(kernel: Bridge) -> None:
    result = await kernel.run(
        "from IPython.display import display, HTML, clear_output\n"
        "handle = display(HTML('<b>1</b>'), display_id=True)\n"
        "handle.update(HTML('<b>2</b>'))\n"
    )
    assert [o["data"]["text/html"] for o in result.outputs] == ["<b>2</b>"]
    result = await kernel.run("print('cleared'); clear_output(); print('kept')")
    assert result.stdout == "kept\n"


async def test_a_result_shows_its_streams_in_their_order(kernel: Bridge) -> None:
    """The kernel of a notebook collects each of its streams for itself."""
    code = "\n".join(
        f"print({n}, file=sys.{name}, flush=True)"
        for n, name in enumerate(["stdout", "stderr"] * 3)
    )
    result = await kernel.run(f"import sys\n{code}")
    shown = await kernel.run(
        "result._ipython_display_()", push={"result": result}, store_history=False
    )
    assert [output["text"] for output in shown.outputs] == [f"{n}\n" for n in range(6)]
    assert shown.outputs == result.outputs


async def test_a_result_shows_its_figure_and_its_table(kernel: Bridge) -> None:
    pytest.importorskip("matplotlib")
    result = await kernel.run(
        "%matplotlib inline\nfrom matplotlib import pyplot\nimport pandas\n"
        "pyplot.plot([1, 3, 2])\npyplot.show()\nprint('fitted')\npandas.DataFrame({'n': [1]})"
    )
    shown = await kernel.run("result", push={"result": result}, store_history=False)
    outputs = [
        [{name: output.get(name) for name in ("data", "metadata", "text")} for output in outputs]
        for outputs in (shown.outputs, result.outputs)
    ]
    assert outputs[0] == outputs[1]
    assert [sorted(output["data"] or ["text"]) for output in outputs[0]] == [
        ["image/png", "text/plain"],
        ["text"],
        ["text/html", "text/plain"],
    ]


async def test_on_output_gets_clear_output_messages(kernel: Bridge) -> None:
    received: list[tuple[str, object]] = []
    cell = "from IPython.display import clear_output\nprint('cleared', flush=True)\n"
    await kernel.run(
        cell + "clear_output(wait=True)\nprint('kept')",
        on_output=lambda message: received.append((message.type, message.content.get("wait"))),
    )
    # ipykernel may send the two writes of one print as two messages.
    kinds = [kind for kind, _ in itertools.groupby(received)]
    assert kinds == [("stream", None), ("clear_output", True), ("stream", None)]


async def test_run_returns_with_every_output(kernel: Bridge) -> None:
    result = await kernel.run("for i in range(3000): print(i, flush=i % 100 == 0)")
    assert result.stdout.splitlines() == [str(i) for i in range(3000)]


async def test_on_output_is_called_as_outputs_arrive(kernel: Bridge) -> None:
    arrived = asyncio.Event()
    seen: list[str] = []

    def on_output(message: object) -> None:
        seen.append(message.text)  # type: ignore[attr-defined]
        arrived.set()

    cell = (
        "import time\nprint('first', flush=True)\nwhile not globals().get('stop'): time.sleep(.02)"
    )
    running = asyncio.ensure_future(kernel.run(cell, on_output=on_output))
    await asyncio.wait_for(arrived.wait(), 20)
    assert not running.done()
    assert "first" in seen[0]
    await kernel.interrupt()
    with pytest.raises(RemoteError, match="KeyboardInterrupt"):
        await running


async def test_on_output_is_not_called_after_a_timeout_of_run(kernel: Bridge) -> None:
    seen: list[object] = []
    cell = "import time\nfor i in range(20): print(i, flush=True); time.sleep(0.05)"
    with pytest.raises(TimeoutError, match="run timed out after"):
        await kernel.run(cell, on_output=seen.append, timeout=0.4)
    count = len(seen)
    await kernel.pull("i")
    assert len(seen) == count


async def test_an_exception_of_on_output_is_raised_from_run(kernel: Bridge) -> None:
    def on_output(message: object) -> None:
        raise LookupError("in the callback")

    with pytest.raises(LookupError, match="in the callback"):
        await kernel.run("print(1); finished = True", on_output=on_output)
    assert await kernel.pull("finished")


async def test_the_error_of_a_failing_cell_has_the_kernels_traceback(kernel: Bridge) -> None:
    with pytest.raises(RemoteError, match="ZeroDivisionError: division by zero") as caught:
        await kernel.run("print('before')\ndef f():\n    return 1/0\nf()")
    error = caught.value
    assert (error.ename, error.evalue) == ("ZeroDivisionError", "division by zero")
    assert any(
        "1/0" in line.replace("\x1b[39m", "").replace(" ", "") for line in error.traceback
    ) or ("return" in "".join(error.traceback))
    assert error.result.stdout == "before\n"
    assert error.result.outputs[-1]["output_type"] == "error"


async def test_the_error_of_a_value_that_cannot_be_shown_has_its_name(kernel: Bridge) -> None:
    with pytest.raises(RemoteError, match="^ZeroDivisionError: division by zero") as caught:
        await kernel.run("class Part:\n    def __repr__(self): return 1 / 0\nPart()")
    assert (caught.value.ename, caught.value.evalue) == ("ZeroDivisionError", "division by zero")


async def test_input_in_a_cell_raises_instead_of_waiting(kernel: Bridge) -> None:
    with pytest.raises(RemoteError, match="StdinNotImplementedError"):
        await kernel.run("input('name? ')")


async def test_messages_of_one_cell_arrive_in_order(kernel: Bridge) -> None:
    stream = kernel.messages()
    await kernel.run("3+2")
    seen = []
    async with asyncio.timeout(20):
        async for message in stream:
            seen.append(message)
            if message.text == "idle" and seen[-2].type == "execute_result":
                break
    cascade = [m for m in seen if m.parent == seen[-1].parent]
    assert [m.type for m in cascade] == ["status", "execute_input", "execute_result", "status"]
    assert [m.text for m in cascade] == ["busy", "3+2", "5", "idle"]
    await stream.aclose()
    assert [m async for m in stream] == []


async def test_cancelling_a_wait_for_a_message_loses_none(kernel: Bridge) -> None:
    stream = kernel.messages()
    for _ in range(20):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                while True:
                    await anext(stream)
    await kernel.run("'found'")
    async with asyncio.timeout(20):
        async for message in stream:
            if message.type == "execute_result":
                break
    assert message.text == "'found'"


async def test_an_iterator_of_messages_ends_when_the_bridge_is_closed() -> None:
    async with Bridge.launch() as bridge:
        stream = bridge.messages()
    async with asyncio.timeout(10):
        async for _ in stream:
            pass
