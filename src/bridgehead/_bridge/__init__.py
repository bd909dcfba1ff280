"""The public classes: Bridge and Fleet, and SyncBridge and SyncFleet, which block.

Rule: what an operation takes, returns and raises, and how it becomes one request. When a request
is sent, and what happens when the kernel restarts, is decided in ``_connection``.

- ``bridge``: ``Bridge``, one kernel. Start here.
- ``cell_methods``: its operations that run cells. ``cell_work`` and ``cell_stream`` do them.
- ``work_methods``: its operations that run functions, iterate and call back. ``work`` is what
  ``call`` and ``submit`` share.
- ``notebook``: the cells of a notebook, one after the other; ``whole_file`` writes its file, and
  ``widget_models`` keeps its widgets.
- ``constructors``: how a bridge is launched, attached, connected and closed; ``opening``: what the
  constructors return.
- ``arguments``: checks of names, expressions and sizes.
- ``progress``: the progress of a transfer, as a bar or a callable.
- ``fleet``: ``Fleet``, many kernels as one object.
- ``fleet_work``: the operations of a fleet that divide work among its kernels.
- ``fleet_map``: a map over a fleet, item by item.
- ``scatter``: sequences in parts, and the parts as one sequence again.
- ``executor``: a fleet as an executor of ``concurrent.futures``.
- ``fleet_base``: how a fleet is opened and closed, and how the outcomes of all kernels become one.
- ``fleet_watch``: values in many kernels, followed together.
- ``fan_out``: one payload to many kernels, in shared memory once.
- ``sync``: ``SyncBridge``, the same operations for callers that block.
- ``sync_fleet``: ``SyncFleet``, the same for many kernels.
- ``blocking_methods``: how an operation that blocks is made from one that does not.
- ``sync_base``: what both share: opening, closing, and calls on the event loop.
- ``sync_task``: a task as a future of ``concurrent.futures``.
- ``sync_iterators``: iterators that block until the next item.
- ``public_names``: the names by which tracebacks and pickles know what is public.
- ``loop_thread``: the thread in which the event loop of all SyncBridges runs.
"""
