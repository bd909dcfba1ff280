"""The client's end of the protocol, sans-I/O.

Rule: this folder converts between objects, headers and text. It uses no socket, no event loop
and no kernel, so bytes alone can test every function. On the client's side, only this folder
calls what pickles and unpickles objects: ``_shipped.wire`` and ``_shipped.data``. What both ends
must agree on is in ``_shipped.wire``.

- ``payload``: an object becomes frames, and frames become an object again.
- ``request``: the header of a request, and the message that carries it.
- ``bootstrap``: the source of the remote part, and the expression that installs and calls it.
- ``response``: the header of a response, and its frames.
- ``raising``: the errors that a response reports, as exceptions.
- ``results``, ``ref``: what operations return to the user.
- ``display``: what of a kernel's outputs is shown.
- ``formatting``: values as one line of text, or as an HTML table.
- ``spelling``: the arguments that messages advise, as their reader writes them.
"""
