"""The operations of ``Bridge`` that run cells.

Rule: what a user may say of a cell, and what it gives back. ``cell_work`` does it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bridgehead._bridge.arguments import OnTimeout, awaits, expression_text
from bridgehead._bridge.cell_stream import CellStream
from bridgehead._bridge.cell_work import CellWork
from bridgehead._bridge.constructors import BridgeBase
from bridgehead._connection.callbacks import Callback
from bridgehead._connection.running_cell import InputHandler
from bridgehead._protocol.payload import PayloadSource
from bridgehead._protocol.ref import Ref, carried, expression_of
from bridgehead._protocol.results import Result
from bridgehead._transports.messages import Message


class CellMethods(BridgeBase):
    """The operations that run cells."""

    async def run(
        self,
        code: str,
        *,
        push: Mapping[str, Any] | None = None,
        pull: Sequence[str | Ref] = (),
        on_output: Callable[[Message], object] | None = None,
        on_input: InputHandler | None = None,
        max_output: int | None = None,
        store_history: bool = True,
        timeout: float | None = None,
        on_timeout: OnTimeout = "leave",
    ) -> Result:
        r"""Run a cell as a user would: it is counted, kept in history, and seen by all clients.

        Magics and top-level ``await`` work as in a notebook; ``input()`` raises, without
        ``on_input``. If the cell fails, requests of other clients are not aborted.

        Args:
            code: the cell.
            push: names to objects, which the cell gets when its code begins, all or none, as by
                ``push``: no other client's cell and no other push comes between. What cannot be
                sent or unpickled is raised, and the cell does not run.
            pull: expressions or refs, as for ``pull``, but without ``await``. They are evaluated
                with the cell's own reply: nothing comes between. ``result.values`` has their
                values. After a cell that failed they are not evaluated.
            on_output: called with the message of each output as it arrives, and with messages
                that clear or update earlier outputs. What it raises is raised from ``run`` when
                the cell is done.
            on_input: called with the prompt, and whether a password is asked for, when the cell
                calls ``input()`` or ``getpass``, or a debugger in it waits for a command. It
                returns the answer, or is async; it is cancelled when the cell asks anew, which an
                interrupted cell may do. What it raises ends the cell and is raised from ``run``.
                What it asks of this bridge needs ``now=True``, as the cell waits for it; anything
                else is ``NotSupported``.
                After a timeout or a cancel the cell's input has ended.
            max_output: characters of printed text and displays, together, that are kept: half of
                them from the beginning, half from the end. A line stands for what was dropped, and
                ``result.dropped`` counts it. The kernel cuts what the cell and the programs that it
                waits for print, and what its thread displays, for all clients, so nothing carries
                the rest or keeps it. The end comes when the code has ended or raises, behind the
                cell's value. A display is dropped as a whole. The value counts for itself: it is
                dropped only if it alone is longer than this. The traceback of the cell's own
                exception does not count; the exception has it, and ``result.outputs`` has it unless
                it alone is longer than this.
            store_history: False keeps the cell out of ``In``, the history and the counter. IPython
                keeps its value in ``_`` even so, and all clients see the cell.
            timeout: seconds.
            on_timeout: what happens to the cell after a timeout or a cancel: ``"leave"`` lets it
                go on in the kernel. ``"interrupt"`` interrupts it, or keeps it from beginning,
                and interrupts nothing else; after a timeout ``run`` waits a moment for its end.
                What ``pull`` evaluates is not interrupted. A kernel that cannot tell one cell from
                another (on Windows, or that is not ipykernel) interrupts whatever runs, if the cell
                has begun.

        Raises:
            RemoteError: the cell raised, or evaluating or pickling what it gave; ``result`` holds
                what it gave before.
            DecodeError, UntrustedPayload: a value of ``pull=`` cannot be opened here; ``result``
                holds what else the cell gave.
            RunTimeout: the time is over, a ``TimeoutError``; ``result`` holds the outputs so far.
                The message says whether the cell ran or runs. With ``max_output=``, the kernel of a
                cell that still runs has sent only the beginning of what it printed: the first half.
            ValueError: ``push=`` or ``max_output=``, and the cell is empty; or an expression in
                ``pull=`` has ``await``; or the cell, or what ``on_input`` returned, has half of a
                surrogate pair, which no message can carry.
            NotSupported: ``on_timeout="interrupt"``, and a kernel that cannot be interrupted; or
                ``push=`` or ``max_output=``, and a kernel that is not ipykernel on POSIX, or whose
                cells run in a thread; or ``on_input=``, and xeus-python; or one of these or
                ``pull=``, and an ipyparallel engine. The cell did not run.

        Example::

            >>> result = await bridge.run("print('at work')\n6 * 7")
            >>> result.stdout
            'at work\n'
            >>> result.data["text/plain"]
            '42'
            >>> result = await bridge.run("input('who? ')", on_input=lambda prompt, hidden: "Ada")
            >>> result.data["text/plain"]
            "'Ada'"
            >>> result = await bridge.run("y = sum(rows)", push={"rows": [1, 2]}, pull=["y"])
            >>> result.values
            {'y': 3}
            >>> result = await bridge.run("for n in range(1000): print(n)", max_output=8)
            >>> result.stdout
            '0\n1\n\n[3,882 characters dropped]\n999\n'
        """
        options: dict[str, Any] = {"push": push, "pull": pull}
        options |= {"on_output": on_output, "on_input": on_input}
        options |= {"max_output": max_output, "store_history": store_history}
        return await self._cell(code, **options, timeout=timeout, on_timeout=on_timeout).do()

    def stream(
        self,
        code: str,
        *,
        max_output: int | None = None,
        store_history: bool = True,
        timeout: float | None = None,
        on_timeout: OnTimeout = "leave",
    ) -> CellStream:
        """Run a cell, and iterate over its outputs: ``async with bridge.stream(code) as outputs``.

        The turn is taken now, as by ``run``, and the cell runs whether it is iterated or not. What
        it raises is raised at the end of the loop.

        Args:
            code, max_output, store_history, timeout: as in ``run``.
            on_timeout: as in ``run``. ``"interrupt"`` also interrupts the cell when the iteration
                is left early.

        Raises, while it is iterated, after the outputs before it:
            RemoteError, RunTimeout, NotSupported: as ``run`` does.

        Example::

            >>> async with bridge.stream("for n in range(2): print(n)") as outputs:
            ...     print("".join([message.text async for message in outputs]))
            0
            1
        """
        options: dict[str, Any] = {"max_output": max_output, "store_history": store_history}
        options |= {"timeout": timeout, "on_timeout": on_timeout}
        outputs = CellStream(lambda take: self._cell(code, on_output=take, **options), code)
        outputs.owner = self
        return outputs

    def _cell(
        self,
        code: str,
        *,
        pull: Sequence[str | Ref] = (),
        stand_ins: Mapping[type, Callable[[Any], Any]] | None = None,
        **options: Any,
    ) -> CellWork:
        """Return a cell; a fleet gives ``stand_ins`` of its own."""
        if isinstance(pull, str):
            raise TypeError("pull= takes a list of expressions, e.g. pull=['x']")
        expressions = [expression_text(expression, self) for expression in pull]
        if any(map(awaits, expressions)):
            raise ValueError(
                "run(pull=) takes no expression with await; await it in the cell and bind it to a "
                "name for pull=, or use pull() after the cell"
            )
        stand_ins = self._stand_ins if stand_ins is None else stand_ins
        return CellWork(self._connection, code, pull=expressions, stand_ins=stand_ins, **options)

    @property
    def _stand_ins(self) -> dict[type, Callable[[Any], Any]]:
        """How to pickle what stands for something else: a ref, a callback."""

        def reduce_ref(ref: Ref) -> Any:
            text, objects = expression_of(ref, self), carried(ref._objects)
            return Ref, (text, objects) if objects else (text,)

        connection = self._connection
        return {Ref: reduce_ref, Callback: lambda one: one._reduce(connection)}

    def _objects_source(
        self, objects: dict[str, Any], expressions: Sequence[str | Ref]
    ) -> PayloadSource | None:
        """Return the object that expressions send along: those that their refs carry, if any."""
        crossing = carried(objects)
        if not crossing:
            return None
        parts = {f"expressions[{index}]": one for index, one in enumerate(expressions)}
        if len(parts) == 1:
            parts = {"the expression": expressions[0]}
        return PayloadSource(crossing, parts, refs=self._stand_ins)
