"""The peers: other ways to carry objects between processes, each as its documentation recommends.

Rule: one file a peer. Its library is imported when the peer is made, so no run needs all of them.
"""

from __future__ import annotations

from importlib import import_module

from bridgehead._tools.bench.peers import Memcpy, Peer, PicklePeer, RawZmq

BUILT_IN = {"memcpy": Memcpy, "pickle": PicklePeer, "zmq": RawZmq}


def make(spec: str) -> Peer:
    """Make the peer of ``name`` or ``name:argument``, without starting it.

    Raises:
        ImportError: the peer's library isn't installed, or there is no such peer.
    """
    name, _, argument = spec.partition(":")
    kind = BUILT_IN.get(name) or import_module(f"{__name__}.{name}_peer").make
    made: Peer = kind(*([argument] if argument else []))
    return made
