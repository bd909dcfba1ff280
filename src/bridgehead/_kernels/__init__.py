"""Where a kernel comes from: everything up to an open transport.

Rule: a kernel is found or started, its connection is checked, and a transport to it is opened.
Nothing here knows the remote part, or sends a request to it.

- ``discovery``: lists the kernels that can be reached from here.
- ``launch``: starts a kernel of our own.
- ``local``: connects by a connection file, or by the client that its owner lends.
- ``jupyter_servers``: connects to a kernel behind a Jupyter server.
- ``security``: refuses what would let a stranger in, before a socket is opened.
"""
