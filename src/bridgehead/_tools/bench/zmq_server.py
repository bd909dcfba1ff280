"""The far side of raw zmq: keeps the objects that are sent to it, and gives them back.

Rule: a script for a bare Python process, run by its path: ``zmq_server.py ADDRESS [MODULE…]``.
It says where it listens in its first line of output, and ends with its standard input.
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
        asker, command, name = (frame.bytes for frame in frames[:3])
        if command == b"push":
            kept[name] = pickle.loads(frames[3].buffer, buffers=[f.buffer for f in frames[4:]])
            del frames
            socket.send_multipart([asker, b"ok"])
        else:
            buffers: list[pickle.PickleBuffer] = []
            head = pickle.dumps(kept[name], protocol=5, buffer_callback=buffers.append)
            socket.send_multipart([asker, head, *(b.raw() for b in buffers)], copy=False)


def end_with_parent() -> None:
    """Whoever started this may be killed, and nobody else would end it."""
    while os.read(0, 1024):  # not sys.stdin, whose lock a thread must not hold at the end
        pass
    os._exit(0)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever started this
    threading.Thread(target=end_with_parent, daemon=True).start()
    for module in sys.argv[2:]:
        importlib.import_module(module)
    gc.disable()  # the reference at its best
    serve(sys.argv[1])
