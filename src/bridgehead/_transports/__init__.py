"""Jupyter messages to one kernel and back.

Rule: this floor knows messages, connections and the state of the kernel. It knows nothing of
objects or lanes. Each way to a kernel is a ``Transport`` in a file of its own, with its helpers
beside it. ``base`` composes what all of them share; its parts do not import ``base``.

What all transports share, in the order in which a request meets it:

- ``base``: ``Transport``, composed of the parts below. Start here.
- ``capabilities``: what a transport can carry, frozen.
- ``dispatch``: sends the requests, and takes the messages that arrive. It sends a request again
  that another client's failing cell aborted (``timings.abort_pauses``).
- ``request_table``: the requests in flight, and how many there may be.
- ``inquiry``: what the kernel is asked when a reply is missing.
- ``state``: the state of one kernel, and the futures waiting for it.
- ``messages``: parsed iopub messages, and a stream of them.
- ``gate``: which process of the kernel answers; nothing is sent before that is known.
- ``evidence``: whether a process of this machine, or what listens at an address, has ended.
- ``quirks``: how other Python kernels differ from ipykernel.
- ``tasks``: helpers for asyncio tasks and for waiting.
- ``addresses``: addresses of sockets and of servers; ``_kernels`` and ``_tools`` use them, too.
- ``timings``: all waits and periods of the client, with their reasons.

The transports, each with its helpers:

- ``zmq``: the kernel's own ZeroMQ sockets; ``zmq_context``, ``zmq_link``, ``zmq_reader``,
  ``process``, ``signed_messages``, which checks and parses the messages, ``zmq_iopub``, which all
  bridges on one kernel share, and ``subscription``, which says what is read there.
- ``websocket``: a kernel behind a Jupyter server; ``rest``, ``jupyterhub``, ``subprotocols``.
- ``ipyparallel_engine``: one engine of a cluster; ``ipyparallel_client``, and
  ``ipyparallel_control`` for what the engine serves while it works.
- ``loopback``: a kernel simulated by a thread of this process.
"""
