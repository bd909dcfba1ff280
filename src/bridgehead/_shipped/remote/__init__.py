"""The kernel's end of the protocol.

Rule: standard library only, Python 3.8 and later. Nobody imports it but ``_protocol.bootstrap``,
to ship it. It is a guest: it leaves no name in the user's namespace, and takes what it needs of
builtins and modules when it is installed.

- ``bootstrap``: the first lines, which install the rest.
- ``entry``: what the expression of a request calls.
- ``socket_thread``: the same for the direct lane, in a thread.
- ``server``: takes a request, and decides when it runs.
- ``replay``: what arrived of requests, what is left of responses, which requests are done.
- ``operations``: what each request does: bind, fetch, call, delete.
- ``namespace``: the user's namespace, and values as frames.
- ``subscriptions``: values that a client watches.
- ``kernel``, ``inspection``: the kernel as its guest sees it.
- ``orphans``: subshells that a client left behind.
"""
