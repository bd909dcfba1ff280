"""The server of raw zmq: keeps objects and gives them back.

Rule: a script for a bare Python process, run by its path: ``zmq_server.py ADDRESS [MODULE…]``.
Its first line of output is the address where it listens. It exits when its standard input ends.
"""

from __future__ import annotations

import gc
import importlib
import os
import pickle
import signal
import sys
import threading
from typing import Any

import zmq


def serve(address: str) -> None:
    socket = zmq.Context().socket(zmq.ROUTER)
    socket.bind(address)
    sys.stdout.write(f"{socket.get_string(zmq.LAST_ENDPOINT)}\n")
    sys.stdout.flush()
    kept: dict[bytes, Any] = {}
    while True:
        frames = socket.recv_multipart(copy=False)
        client, command, name = (frame.bytes for frame in frames[:3])
        if command == b"push":
            kept[name] = pickle.loads(frames[3].buffer, buffers=[f.buffer for f in frames[4:]])
            del frames
            socket.send_multipart([client, b"ok"])
        else:
            buffers: list[pickle.PickleBuffer] = []
            head = pickle.dumps(kept[name], protocol=5, buffer_callback=buffers.append)
            socket.send_multipart([client, head, *(b.raw() for b in buffers)], copy=False)


def end_with_parent() -> None:
    """Exit when the parent process ends: if it is killed, no other process would end this one."""
    while os.read(0, 1024):  # not sys.stdin: a thread must not hold its lock at exit
        pass
    os._exit(0)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent process
    threading.Thread(target=end_with_parent, daemon=True).start()
    for module in sys.argv[2:]:
        importlib.import_module(module)
    gc.disable()  # the reference is measured at its best
    serve(sys.argv[1])
