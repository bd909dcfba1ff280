"""The benchmark: bridges side by side with their peers on one machine.

Rule: it measures and does not print. Everything that is compared is a ``Peer``. All peers take
turns in every round, so the machine's noise affects all of them alike. Only the protocol may use
pickle elsewhere; the benchmark may too, because raw pickle is one of the peers.

- ``session``: one run: its kernels, and its figures as plain values. Start here.
- ``rounds``: all peers take turns, side by side.
- ``peers``: a bridge's lanes, and what they are compared with; ``zmq_server`` is the server of one.
- ``samples``: the payloads.
- ``plot``: the figures as a drawing.
"""
