"""The client's end of the protocol, sans-I/O.

Rule: objects, headers and text, turned into one another. No socket, no event loop, no kernel:
every function here can be tested with bytes alone. Objects are pickled and unpickled in this
floor and in no other on the client's side. What both ends must agree on is ``_shipped.wire``'s.

- ``payload``: an object becomes frames, and frames become an object again.
- ``request``: the header, and the message that carries it.
- ``bootstrap``: the source of the remote part, and the expression that installs and calls it.
- ``response``: the header that came back, and its frames.
- ``raising``: the errors that a response reports, as exceptions.
- ``results``, ``ref``: what operations return to the user.
- ``formatting``: how values look on one line, or as a table.
"""
