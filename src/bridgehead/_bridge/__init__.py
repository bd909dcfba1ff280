"""The public classes: Bridge, SyncBridge and Fleet.

Rule: what an operation takes, returns and raises, and how it becomes one request. When a request
is sent, and what happens when the kernel restarts, is decided in ``_connection``.

- ``bridge``: ``Bridge``, one kernel. Start here.
- ``opening``: how a bridge is launched, attached, connected and closed.
- ``arguments``: checks of names, expressions and sizes.
- ``progress``: the progress of a transfer, as a bar or a callable.
- ``fleet``: ``Fleet``, many kernels as one object.
- ``sync``: ``SyncBridge``, the same operations for callers that block.
- ``loop_thread``: the thread in which the event loop of all SyncBridges runs.
"""
