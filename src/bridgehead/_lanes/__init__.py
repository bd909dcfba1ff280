"""Frames over a transport.

Rule: how the frames of a request reach the remote part, and how the frames of its response come
back: in chunks, inside Jupyter messages or over a socket beside them. A lane does not decide when
a request is sent, or whether it is sent again: that belongs to ``_connection``.

- ``handshake``: asks what the kernel is, and chooses the lane. It runs first.
- ``base``: ``Lane``, what all lanes share, and ``MessageLane``, for those whose frames cross in
  messages. What they carry is in ``_protocol.request``.
- ``arrival``: the chunks of a long response that arrive ahead of its reply.
- ``inline``: frames as base64 in the expression and in the response's text.
- ``buffers``: frames as binary buffers of the Jupyter messages; ``hello`` there sends the
  handshake, which finds out whether buffers arrive.
- ``direct``: frames by a Unix socket and shared memory, on one machine.
- ``socket``: the client's end of that socket.
- ``forwarding``: segments of one kernel, leased on to another kernel.
- ``broadcast``: frames to many kernels at once.
"""
