"""One kernel's policies: order, deadlines, restarts, retries, trust.

Rule: everything between an operation and its messages that is a decision. Here an operation gets
its turn and its deadline, a restart is noticed, and a request is sent again or not. How frames
travel is ``_lanes``'; how messages travel is ``_transports``'.

- ``calls``: an operation, its payload, its deadline and its result.
- ``connection``: takes a call through all that follows. Start here.
- ``queue``: operations take their turns in the order of their calls.
- ``remote``: the remote part in the kernel, installed and kept installed.
- ``subshell``: for operations that run while a cell does.
- ``trust``: whether a result is opened as a pickle or as data.
- ``cell``: the outputs of a cell that a user runs.
- ``watch``: a value in the kernel, followed.
- ``handoff``: from one kernel to another.
"""
