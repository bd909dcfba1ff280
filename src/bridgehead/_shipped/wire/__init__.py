"""What both ends of the wire share.

Rule: standard library only, Python 3.8 and later. One file serves both ends, so the two cannot
drift. Here is how bytes are laid out, checked and kept; what a request does is ``remote``'s, and
what a user sees of it the client's.

- ``pickling``: an object becomes frames.
- ``frames``: frames, cut into chunks and joined again.
- ``digest``: the digests by which both ends know that bytes arrived as they were sent.
- ``header``: the fields of a request's header, checked.
- ``transfer``: what has arrived of a stream, and what is left to send of one.
- ``segments``: shared memory, leased and reused.
- ``socket``: messages over the direct lane's socket.
- ``errors``: what is wrong with bytes that arrived.
"""
