"""One kernel's policies: order, deadlines, restarts, retries, trust.

Rule: every decision between an operation and its messages. This folder gives an operation its turn
and its deadline, reports a restart, and decides whether a request is sent again. Two cases are
decided in ``_transports.dispatch`` instead: it tries again what another client's failing cell
aborted (``ABORT_PAUSES``), and what a broken and remade connection may have lost
(``Reconnected``). How frames travel belongs to ``_lanes``, how messages travel to ``_transports``.

- ``calls``: an operation, its payload, its deadline and its result.
- ``connection``: takes a call through all that follows. Start here.
- ``queue``: operations take their turns in the order of their calls. Its task also sends them,
  except a small request on an idle bridge, which its caller sends.
- ``remote``: the remote part in the kernel, installed and kept installed.
- ``subshell``: runs operations while a cell runs.
- ``trust``: whether a result is opened as a pickle or as data.
- ``cell``: collects the outputs of a cell that a user runs.
- ``watch``: follows a value in the kernel.
- ``handoff``: moves objects from one kernel to another.

Where a restart is noticed:

- A connection that broke and was made again may lead to another process: the transport sends
  nothing before a process has answered over it, and fails what waited if it is another one
  (``_transports.gate``).
- While the bridge is connected, the transport notices it (``zmq``, ``websocket`` and
  ``ipyparallel_engine``) and records it in ``_transports.state``. Calls that wait fail at once.
- A request of an earlier epoch is refused in the kernel (``_shipped/remote/server.py``);
  ``_protocol.raising`` turns the refusal into ``KernelRestarted``.
- If the new kernel has no remote module, the expression of the request raises ``KeyError`` there;
  ``_protocol.response`` turns it into ``KernelRestarted``.
- At the next call, ``remote`` installs the remote part again, compares the epoch and the process,
  and reports the restart once.
"""
