"""Who else carries objects between processes: one file each, written as its documentation has it.

Rule: a peer's library is imported when the peer is made, so nobody needs all of them.
"""

from __future__ import annotations

from importlib import import_module

from bridgehead._tools.bench.peers import Memcpy, Peer, Pickle, RawZmq

HERE = {"memcpy": Memcpy, "pickle": Pickle, "zmq": RawZmq}


def make(spec: str) -> Peer:
    """The peer of ``name`` or ``name:argument``, not yet started.

    Raises:
        ImportError: its library isn't installed, or there is no such peer.
    """
    name, _, argument = spec.partition(":")
    kind = HERE.get(name) or import_module(f"{__name__}.{name}_peer").make
    made: Peer = kind(*([argument] if argument else []))
    return made
