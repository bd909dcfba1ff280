"""The benchmark: bridges side by side with their peers on one machine.

Rule: it measures and does not print. Everything that is compared is a ``Peer``. All peers take
turns in every round, so the machine's noise affects all of them alike. Only the protocol may use
pickle elsewhere; the benchmark may too, because raw pickle is one of the peers.
"""
