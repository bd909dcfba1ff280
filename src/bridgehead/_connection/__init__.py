"""One kernel's policies: order, deadlines, restarts, retries, trust.

Rule: every decision between an operation and its messages. This folder gives an operation its turn
and its deadline, decides whether it is sent again, and reports a restart. How frames travel belongs
to ``_lanes``, how messages travel to ``_transports``.

- ``connection``: takes a call through all that follows. Start here.
- ``call``: what a user asked for, and its deadline.
- ``queue``: operations take their turns in the order of their calls.
- ``installation``: the remote part in the kernel, installed and kept installed.
- ``subshell``: runs operations while a cell runs.
- ``trust``: whether a result is opened as a pickle or as data.
- ``interrupts``: interrupts what the kernel runs, or one cell and no other.
- ``outputs``: collects the outputs of a cell that a user runs.
- ``running_cell``: takes a cell through its turn and its deadline.
- ``resources``: keeps what stays in the kernel for the bridge.
- ``tasks``: awaits what runs on the kernel's event loop.
- ``iteration``: iterates over what the kernel makes.
- ``callbacks``: runs functions here that code in the kernel calls.
- ``kept_result``: keeps results in the kernel under no name.
- ``watch``: follows values in the kernel.
- ``mapping``: has the kernel call a function with several items.
- ``async_items``: what all that iterates shares.
- ``handoff``: moves objects from one kernel to another.
- ``records``: what the log says of an operation.
- ``abandoned_bridge``: closes a connection whose bridge was dropped.

The way of one push, in this program and in the kernel. The test ``test_way_of_a_push`` follows it.

1. ``Bridge.push`` checks the names.
2. ``Connection.within`` sets the deadline and takes a turn.
3. ``Connection._do`` is the loop that decides whether the call is sent again.
4. ``Connection._prepare`` installs the remote part, pickles the objects and makes the request.
5. ``Turn.carry`` waits until the turn comes.
6. ``Queue._carry`` is the task that sends one message, with what else is ready.
7. ``MessageLane.carry`` cuts a long payload into chunks.
8. ``MessageLane.cross`` puts a chunk into a Jupyter message.
9. ``Dispatcher.request`` sends the message and waits for the reply.
10. ``MessageLane.complete`` fetches what is missing of the response, and raises the error that it
    reports.

In the kernel:

1. ``enter`` is what the expression of the message calls.
2. ``carry_message`` takes the header and the frames out of the message.
3. ``Remote.receive`` checks the header.
4. ``Remote.serve`` recognizes repeated messages and requests for another kernel.
5. ``TransferTable.assemble`` puts the chunk in its place, and checks it.
6. ``Remote.handle`` chooses the operation.
7. ``Operations.bind`` unpickles everything, then binds the names.
8. ``TransferTable.respond`` makes the response.

With ``now=True``, ``AtOnce.carry`` takes the place of 5 and 6. If the lane serves the operation
beside a cell (``Lane.serves_beside_cells``: the direct lane does so for some), that is all; else 4
has a ``Subshell`` made in the kernel, to which 9 sends the message.

On the way to the socket, three small functions stand between these: ``Turn._outcome`` after 5,
``Queue._send`` after 6 and ``RequestTable.put`` after 9. On the direct lane, 7 to 9 are
``DirectLane.carry_now`` and ``SocketClient.ask``, and the caller of a small push does without 6. In
the kernel, 1 and 2 are ``SocketThread._round`` and ``_respond``.

What is sent again, and where that is decided. The test ``test_what_is_sent_again`` finds the loops.

- A call: in ``Connection._do``, by the class of the exception.
- A message that another client's failing cell aborted, or that a broken and remade connection may
  have lost (``Reconnected``): in ``Dispatcher.request``. Cells and the handshake are such messages,
  too, and of a long payload only this message is sent again.
- What is no call and does no harm when it is repeated: in ``Transport.until_replied``. These are
  requests on the control channel, cancels, withdrawals, a new subshell, and what ends resources and
  iterations.
- The data-only codec, if the remote part was removed meanwhile: in ``Installation.load_codec``.
- A batch of items: in ``Items._next_batch``. The kernel keeps it, and the request differs each
  time: it says how many of the items have arrived meanwhile.
- What the kernel has to know of resources: in ``HeldResources._renew``, ``Ending._end_all`` and
  ``PendingCalls._report``. These tasks send what is so now, until the kernel has it, and not the
  message that was lost. By that, the kernel sends lost events again, and ``Outcome.response`` and
  ``Watch.__anext__`` wait for them.
- An interrupt of one cell: in ``Interrupts.to_cell``, until the cell has got it or has ended.
- Questions whose answers prove something: in ``_transports``, by the inquiry and before the gate.
- Items of a map, to other kernels, too: in ``_bridge.fleet_map``, as the caller asked.

Two requests change their way: frames that the kernel cannot map cross in messages
(``_lanes.direct``), and a Python that cannot run the remote part's code gets its sources
(``_lanes.buffers``). Nothing was done before.

Where a restart is noticed:

- A connection that broke and was made again may lead to another process: the transport sends
  nothing before a process has answered over it, and fails what waited if it is another one
  (``_transports.gate``).
- While the bridge is connected, the transport notices it (``zmq_link``, ``websocket``
  and ``ipyparallel_engine``) and records it in ``_transports.state``. Calls that wait fail at once.
- Each reconnection to what may be another process increases ``KernelState.generation``. A call, a
  cell and a request remember the generation at which they began, and raise ``KernelRestarted`` when
  it is another one at the moment of sending (``connection``, ``running_cell``, ``dispatch``).
- The socket thread of a direct lane ends, and the kernel's process goes on (``_lanes.direct``).
- A request of an earlier epoch is refused in the kernel (``_shipped/remote/server.py``);
  ``_protocol.raising`` turns the refusal into ``KernelRestarted``.
- If the new kernel has no remote module, the expression of the request raises ``KeyError`` there;
  ``_protocol.response`` turns it into ``KernelRestarted``.
- At the next call, ``installation`` installs the remote part again, compares the epoch and the
  process, and reports the restart once.
"""
