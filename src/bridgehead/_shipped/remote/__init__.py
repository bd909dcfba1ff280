"""The kernel's end of the protocol.

Rule: use the standard library only, and run on Python 3.8 and later. No module imports these files
but ``_protocol.bootstrap``, which ships them. They are a guest in the user's process: they leave no
name in the user's namespace, and capture what they need of builtins and modules when they are
installed.

- ``bootstrap``: the first lines, which install the rest.
- ``entry``: the functions that the expression of a request calls.
- ``socket_thread``: the same for the direct lane, in a thread.
- ``server``: receives a request, and decides when it runs.
- ``replay``: chunks of requests, unsent parts of responses, and the ids of finished requests.
- ``operations``: what each request does: bind, fetch, call, delete.
- ``namespace``: the user's namespace, and its values as frames.
- ``resources``: what stays in the kernel for a bridge.
- ``event_queue``: what it sends to a client that gets nothing but replies.
- ``watch``: values and names that a client watches.
- ``callbacks``: functions of a client that code in the kernel calls.
- ``kept_objects``: results of calls that stay under no name.
- ``tasks``, ``coroutines``: what a client awaits, on the kernel's event loop.
- ``iteration``: what a client iterates over.
- ``staging``: what is sent for a cell before it: names, and a limit on what it prints.
- ``output_limit``: that limit.
- ``mapping``: functions that are called with one item after the other.
- ``kernel``, ``inspection``: the kernel as the remote part sees it.
- ``description``, ``preview``, ``detail``: type and size of a value, a short text of it, and a
  closer look at it, without a user's code.
- ``library_values``: which values of libraries can be looked at without a user's code.
- ``cell_guard``: interrupts that hit one cell and no other.
- ``cell_errors``: the exception of a cell, for the client that sent it.
- ``orphans``: subshells that a client left behind.
- ``snapshot``: how a table is read that other threads may change meanwhile.
"""
