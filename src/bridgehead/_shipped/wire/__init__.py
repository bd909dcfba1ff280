"""The wire format that both ends share.

Rule: use the standard library only, and run on Python 3.8 and later. One file serves both ends,
so the two cannot drift. These files say how bytes are laid out, checked and stored. What a
request does is in ``remote``; what a user sees of it is in the client.

- ``pickling``: turns an object into frames and back. What it pickles in a way of our own:
  ``names``, ``classes``, ``functions``, ``large``, and by ``libraries`` what ``reducers`` knows.
- ``frames``: frames, cut into chunks and joined again.
- ``digest``: the digests by which each end checks that bytes arrived as they were sent.
- ``header``: the fields of a request's header, and their check.
- ``transfer``: what has arrived of a stream, and what is left to send of one.
- ``segments``: shared memory, leased and reused: the sender's end. ``slabs`` are its files,
  ``leases`` is the receiver's end, and ``limits`` says how much of it there may be.
- ``socket``: messages over the direct lane's socket.
- ``process``: what identifies a process to others of its machine.
- ``collector``: the garbage collector, off while an object is built.
- ``excerpt``: the beginning and the end of what comes in pieces.
- ``errors``: the errors of bytes that arrived.
"""
