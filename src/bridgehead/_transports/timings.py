"""The waits and periods of the client.

Rule: every wait and every period of the client stands here, in seconds, with its reason. The
exceptions are the waits that users choose (``timeout=``), and those of the programs in ``_tools``.
The remote part has its own, because it imports nothing from here.

``Transport.timings`` holds the one object that is used. Read it when you need a value, and keep no
copy: tests replace the object, and shorten only a wait whose end they wait for.
"""

from __future__ import annotations


class Timings:
    """The waits and periods of the client, in seconds.

    They are frozen, but this is no dataclass, which would take 2 ms of each import.
    """

    def __init__(self, **changed: float) -> None:
        """Take waits that are to be others than here, for tests."""
        for name, seconds in changed.items():
            if not hasattr(type(self), name):
                raise TypeError(f"there is no wait {name!r}")
            self.__dict__[name] = seconds

    def __setattr__(self, name: str, seconds: object) -> None:
        raise AttributeError(f"{name} is not changed; make other Timings")

    # ------------------------------------------------------------ requests

    # Pauses before each new try of an aborted request. Measured: of 30 requests that were sent
    # again 24 ms after an abort, 1 was aborted again.
    abort_pauses: tuple[float, ...] = (0.02, 0.04, 0.08, 0.16, 0.32, 0.64)
    # That a reply is missing, until the kernel is asked about it. See ``silence`` for a kernel that
    # shows no sign of life.
    inquiry_after: float = 1.0
    # For the answer to that question to arrive, when the kernel says that it has sent it, over a
    # Unix socket; over others, ``lost_after``: it may wait behind a long reply.
    idle_silence: float = 5.0
    # For anything to arrive from a kernel that says it is idle, or that does not answer on its
    # control channel. A slow connection, a user's callback in the kernel's event loop, and a call
    # into C that holds the GIL are waited for so long.
    lost_after: float = 60.0
    # Without a turn of the event loop, for the reply to a small request on the direct lane, which
    # mostly takes 0.1 ms: a turn of the loop takes a sixth to a third of such an operation.
    reply_briefly: float = 0.001
    # After which the event loop has to turn, however quick such replies are.
    loop_held: float = 0.002
    # After a cell's reply, until its last outputs must have arrived; their "idle" may be lost.
    last_outputs: float = 2.0

    # ------------------------------------------------------------ signs of life

    # Between two questions for a sign of life, while a caller waits: a heartbeat, a question to
    # the hub of a cluster, or one on the control channel behind a server.
    beat_every: float = 1.0
    # Without a sign of life, until a kernel counts as unresponsive and is asked on control; a
    # loaded machine alone can miss one beat. Then, for its answer to a later caller.
    silence: float = 5.0
    # Until another owner must have restarted a kernel whose connection is down, and until the
    # process of an attached kernel is looked at.
    reconnect_grace: float = 2.5
    # Until it is known why a connection is down: more than ``reconnect_grace``.
    cause_known: float = 3.0
    # For a kernel to answer after a connection beside its messages broke.
    answers_after_break: float = 3.0
    # Between two looks why there is no connection; when the kernel is lost, between two looks
    # whether there is one again.
    cause_every: float = 0.1
    lost_every: float = 1.0
    # After a break, until the socket is connected anew; then twice as long each time, to a maximum.
    # libzmq itself tries every 50 ms, except after an error that it takes for one of the protocol.
    connect_anew: float = 0.5
    connect_anew_most: float = 8.0
    # For a silent kernel to answer on control, until it is asked again.
    silent_answer: float = 30.0
    # Without a message on iopub after a reply, until iopub is connected anew.
    iopub_silence: float = 3.0
    # Until a reader goes on that failed because this process lacks memory.
    reader_pause: float = 0.1
    # For the greeting of a program that speaks ZeroMQ.
    zmq_greeting: float = 1.0
    # Between two checks whether a child of this process has ended.
    child_every: float = 0.1
    # Between two questions to a provisioner, which may call another machine.
    provisioner_every: float = 1.0

    # ------------------------------------------------------------ opening

    # Without a connection to the address of a connection file, until a look whether a kernel
    # listens there, and until the next look.
    listen_within: float = 3.0
    # Between two looks at something in this process that has no event to wait for.
    poll_every: float = 0.01
    # Between two attempts of ZeroMQ to connect.
    zmq_reconnect_every: float = 0.05
    # For the reply of a kernel that may be starting, before it is asked again: a starting
    # ipykernel 6 loses messages that arrive on control too early. Each time, the wait doubles.
    first_reply: float = 0.5
    longest_reply: float = 8.0
    # Before a kernel that did not reply is asked again.
    ask_again_after: float = 0.02
    # For the response to the handshake, which has the kernel's ``kernel_info``, until the kernel is
    # asked for it: a running cell delays the response. An idle kernel takes some 10 ms.
    unasked: float = 0.05
    # For a message on iopub, whose subscription nothing else confirms, before another question.
    iopub_message: float = 0.25
    # For a kernel that confirms subscriptions to confirm one, before a cell is sent regardless.
    confirmation: float = 2.0
    # For that confirmation, before the kernel is asked again; then twice as long each time.
    confirm_again: float = 0.05
    # Without a cell or a reader of messages, until a bridge stops reading outputs: most cells
    # follow one another, and beginning again costs a round trip.
    outputs_unwanted: float = 1.0
    # For the reply to a binary message behind a server, on a connection that only tries this.
    binary_reply: float = 3.0
    # For one attempt to open a websocket; there may be many. The server first waits until the
    # kernel answers, but of one that it starts at other ports it waits at the old ones, for a
    # minute. As long again for the server's answer to a ping, where none was ever answered: a proxy
    # may answer none.
    websocket_open: float = 10.0

    # ------------------------------------------------------------ closing and restarting

    # For ZeroMQ to send the last messages.
    last_messages: float = 1.0
    # For a killed process to end; its manager may not wait for it any more.
    killed: float = 2.0
    # For the thread of a loopback to end: idle, or while it serves a request, which may take hours.
    idle_thread: float = 0.5
    busy_thread: float = 0.02
    # Until a kernel of a server must have ended. A server that restarts it refuses meanwhile.
    server_end: float = 20.0
    # Before each new try to end it; the last one repeats.
    server_end_pauses: tuple[float, ...] = (0.05, 0.1, 0.2, 0.5, 1.0)
    # For a server to close a websocket, too.
    websocket_close: float = 2.0
    # Beyond ``websocket_close``, for a connection that accepts no more data.
    websocket_abort: float = 1.0
    # For the kernel's control thread to make or delete a subshell.
    subshell_wait: float = 2.0
    # For a subshell to serve what was cancelled just before the bridge was closed.
    subshell_served: float = 0.5
    # After a restart, for the connection to the old process to break: messages that are sent
    # before would be lost with it.
    old_connection: float = 1.0
    # For an interrupted socket thread to reply.
    interrupt_wait: float = 2.0

    # Between two tries to interrupt a cell that begins or ends at this moment: the kernel publishes
    # the beginning before IPython's callbacks, and the code runs after them.
    interrupt_again: float = 0.01

    # For a cell that is interrupted at its deadline to end; one that handles the interrupt may not.
    interrupted_cell: float = 1.0

    # For functions in threads that run when their loop ends; then their threads are left.
    threads_end: float = 10.0
    # For a loop that cancelled the closing of a dropped bridge to end, as asyncio.run does.
    loop_ends: float = 5.0

    # ------------------------------------------------------------ servers

    # Pauses before each attempt to make a broken websocket again; the last one repeats.
    reconnect_pauses: tuple[float, ...] = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0)
    # Until waiting callers get an error; the attempts go on for ever.
    reconnect_within: float = 30.0
    # Between two checks whether any byte of a websocket moves.
    moving_every: float = 1.0
    # Between two pings on a websocket, whose answers show that it works.
    websocket_ping: float = 20.0
    # Until a websocket on which no byte moves is aborted: after two pings without an answer.
    moving_within: float = 40.0
    # For a connection to a server: a port without TLS never answers a TLS handshake.
    server_connect: float = 10.0
    # For the response of a server.
    server_response: float = 20.0
    # Before each look whether a server runs that is starting; the last one repeats.
    server_pauses: tuple[float, ...] = (0.1, 0.2, 0.5, 1.0, 2.0)
    # For the response of a server that starts a kernel.
    server_start: float = 120.0
    # After a cancel, until a server must say which kernel it started.
    start_cancelled: float = 20.0

    # ------------------------------------------------------------ listing kernels

    # For a kernel or a server to answer at all.
    listed_answer: float = 2.0
    # For a program at a connection file's address to accept a connection.
    listed_connect: float = 0.2
    # That shell may answer later than control; a kernel that takes longer is busy.
    shell_after_control: float = 0.4

    # ------------------------------------------------------------ regular work

    # Between two checks for shared memory to give back, while there is any.
    memory_every: float = 1.0
    # Between two renewals of a bridge's lease; without one, the kernel ends what it keeps for the
    # bridge after ten minutes without a cell.
    renew_every: float = 120.0
    # Until a renewal whose reply is lost is sent again, because an event may have been lost with
    # it; then twice as long each time.
    renew_again: float = 1.0
    # Until a request is sent again that ends what the kernel keeps for a bridge; then twice as long
    # each time, to a maximum.
    end_again: float = 1.0
    end_again_most: float = 60.0
    # For the kernel to begin to close an iterator that is left: if it is free, and if it runs
    # something else or it is not known whether it does.
    closing_begins: float = 10.0
    closing_begins_busy: float = 1.0
    # For all of that closing, if the kernel is data only: such a kernel may answer for ever that it
    # has begun. A trusted one may take as long as its ``finally`` does.
    closing_data_only: float = 60.0
    # Between two reports of what became of the calls of a callback, if no call arrives; the kernel
    # then sends again what was lost unnoticed.
    report_every: float = 30.0
    # Until a report whose reply is lost is sent again.
    report_again: float = 1.0
    # Until a batch of an iteration that does not come is asked for the items that it has so far;
    # then twice as long each time, to a maximum. It is longer than the kernel takes for a batch,
    # unless one item takes long.
    take_after: float = 0.02
    take_most: float = 1.0
    # Between two breaks of the connection, above which the second does not count with the first
    # against a batch: its item may take hours.
    breaks_apart: float = 10.0
    # Before the first question whether the kernel has closed an iterator; then a quarter of the
    # time so far, to a maximum.
    closed_after: float = 0.001
    closed_most: float = 0.5
    # Until a kernel of a fleet that is being restarted is tried again.
    away_again: float = 0.1
    # Until a progress bar appears; the bar of a shorter transfer would only flicker.
    bar_after: float = 0.5
    # Between two drawings of a progress bar, as in tqdm.
    bar_every: float = 0.1
