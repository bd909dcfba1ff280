"""One kernel's policies: order, deadlines, restarts, retries, trust.

Rule: every decision between an operation and its messages. This folder gives an operation its turn
and its deadline, notices a restart, and decides whether a request is sent again. How frames
travel belongs to ``_lanes``, how messages travel to ``_transports``.

- ``calls``: an operation, its payload, its deadline and its result.
- ``connection``: takes a call through all that follows. Start here.
- ``queue``: operations take their turns in the order of their calls.
- ``remote``: the remote part in the kernel, installed and kept installed.
- ``subshell``: runs operations while a cell runs.
- ``trust``: whether a result is opened as a pickle or as data.
- ``cell``: collects the outputs of a cell that a user runs.
- ``watch``: follows a value in the kernel.
- ``handoff``: moves objects from one kernel to another.
"""
