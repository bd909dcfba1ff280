"""Tasks: what a client awaits, on the kernel's event loop.

Rule: use the standard library only, and run on Python 3.8 and later. The request that starts a task
is answered when it has started; its outcome is an event. How a coroutine is driven belongs to
``coroutines``, how a task is kept and ended to ``resources``.
"""

from __future__ import annotations

from functools import partial
from inspect import iscoroutine
from typing import Any, Callable, Sequence

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.remote.coroutines import Root, TaskFactory, running_root
    from bridgehead._shipped.remote.kernel import Kernel
    from bridgehead._shipped.remote.namespace import error_response
    from bridgehead._shipped.remote.operations import Operations
    from bridgehead._shipped.remote.resources import Resource, ResourceTable
    from bridgehead._shipped.wire.digest import Buffer
    from bridgehead._shipped.wire.errors import WireError
    from bridgehead._shipped.wire.frames import snapshot
    from bridgehead._shipped.wire.header import HeaderAndFrames, RequestHeader


class RunningTask(Resource):
    """A task of a client, and its outcome once it is done."""

    def __init__(
        self, header: RequestHeader, tasks: TaskTable, answer: Callable[[Any], HeaderAndFrames]
    ) -> None:
        """``answer`` makes the response from what the task returns."""
        super().__init__(header)
        self.tasks, self.answer = tasks, answer
        self.root: Root | None = None
        self.outcome: HeaderAndFrames | None = None

    def end(self) -> None:
        """Cancel the task, unless it is done."""
        if self.root is not None:
            self.root.task.cancel()

    def repeat(self, seen: int) -> None:
        if self.outcome is not None:
            self.tasks.resources.send_again(self, *self.outcome)

    def done(self, task: Any) -> None:
        """Send the outcome; the event loop calls this."""
        root, resources = self.root, self.tasks.resources
        try:
            value = None if task.cancelled() else task.result()  # retrieves the exception
            if root is not None and root.ended_by is not None:
                raise root.ended_by
            if self.id not in resources.known:  # its client does not wait any more
                return
            if task.cancelled():
                task.result()
            response, frames = self.answer(value)
            self.outcome = response, snapshot(frames)
        except BaseException as error:
            self.outcome = error_response(error)
        if self.id in resources.known:
            if root is not None and self.header.get("outputs"):
                resources.kernel.end_outputs(root.parent)
            resources.send(self, *self.outcome)


class TaskTable:
    """The tasks of one namespace."""

    def __init__(self, kernel: Kernel, operations: Operations, resources: ResourceTable) -> None:
        self.kernel, self.operations, self.resources = kernel, operations, resources
        self.factory = TaskFactory()
        self.running: set[Root] = set()
        # Those whose first step is still to come. Any thread may ask whether there are some.
        self.starting: set[Root] = set()

    def start(self, header: RequestHeader, frames: Sequence[Buffer]) -> HeaderAndFrames:
        """Start a task: of a shipped function that returns an awaitable, or of an expression."""
        self.require_loop()
        if header.get("outputs") and not self.kernel.can_publish:
            raise WireError("unsupported", "this kernel does not say whose output is whose")
        if header.get("expressions"):
            awaitable = self.operations.values.evaluate_async(header["expressions"][0])
        else:
            awaitable = self.operations.run_function(header, frames)
        coroutine = awaitable if iscoroutine(awaitable) else wait_for(awaitable)
        return self.start_with(header, coroutine, partial(self.operations.result, header))

    def start_with(
        self, header: RequestHeader, coroutine: Any, answer: Callable[[Any], HeaderAndFrames]
    ) -> HeaderAndFrames:
        """Start a task for a client; its outcome is what ``answer`` makes of its value."""
        try:
            self.resources.check(header)
        except BaseException:
            coroutine.close()
            raise
        task = RunningTask(header, self, answer)
        self.resources.add(task)
        task.root = self.start_alone(coroutine)
        task.root.parent = self.kernel.parent()
        task.root.task.add_done_callback(task.done)
        return {}, []

    def start_alone(self, coroutine: Any) -> Root:
        """Start a task whose outcome no client waits for."""
        loop = self.require_loop()
        self.factory.install(loop)
        if not self.running:
            self.kernel.hook_displays(name_parent)
        root = self.factory.start(coroutine)
        self.running.add(root)
        # In this order: an interrupt in between must not leave the root there for ever.
        loop.call_soon(self.starting.discard, root)  # behind its first step
        self.starting.add(root)

        def ended(task: Any) -> None:
            self.running.discard(root)
            if not self.running:
                self.factory.remove()
                self.kernel.unhook_displays(name_parent)
                # Another one next time: the user may have wrapped this one, and kept that.
                self.factory = TaskFactory()

        root.task.add_done_callback(ended)
        return root

    def require_loop(self) -> Any:
        """Return the event loop of the cells; raise ``WireError`` if there is none."""
        loop = self.kernel.loop()
        if loop is None or not loop.is_running():
            message = "async functions, await and async iterators need an event loop in the kernel"
            raise WireError("unsupported", message)
        return loop


def name_parent(message: Any) -> Any:
    """Have a display of a task name the request that started the task.

    What a task prints does so in ipykernel 6 and 7, and what it displays in ipykernel 7: they ask
    the context. A display of ipykernel 6 names the newest request, of whatever client.
    """
    root = running_root()
    if root is not None and root.parent:
        message["parent_header"] = root.parent
    return message


async def wait_for(awaitable: Any) -> Any:
    """Return what an awaitable gives."""
    return await awaitable
