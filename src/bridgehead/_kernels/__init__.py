"""Where a kernel comes from: everything up to an open transport.

Rule: this floor finds or starts a kernel, checks its connection, and opens a transport to it.
It knows nothing of the remote part and sends no request to it.

- ``discovery``: lists the kernels that this process can reach.
- ``launch``: starts a kernel; ``launch_folder`` has its sockets.
- ``started_kernels``: starts, ends and restarts kernels that no program watches.
- ``local``: connects by a connection file, or by the client or manager of the caller.
- ``connection_file``: finds and reads connection files.
- ``jupyter_servers``: connects to a kernel behind a Jupyter server; ``server_wait`` waits for one.
- ``descriptors``: whether this process may open what a connection takes.
- ``listeners``: which process listens on a port of this machine.
- ``reserved_ports``: TCP ports that no other program takes before a kernel listens there.
- ``security``: refuses insecure connections, before a socket is opened.
"""
