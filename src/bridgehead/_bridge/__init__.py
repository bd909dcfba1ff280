"""What users call.

Rule: the public classes. Here is what an operation takes, returns and raises, and how it becomes
one request. When a request is sent, and what happens when the kernel restarts, is
``_connection``'s.

- ``bridge``: ``Bridge``, one kernel. Start here.
- ``opening``: how a bridge is launched, attached, connected and closed.
- ``arguments``: checks of names, expressions and sizes.
- ``progress``: how far a transfer is, as a bar or a callable.
- ``fleet``: ``Fleet``, many kernels as one object.
- ``sync``: ``SyncBridge``, the same for callers that block.
- ``loop_thread``: the event loop, in a thread, that it runs in.
"""
