"""The kernel's end. Nobody here imports it; ``_protocol.bootstrap`` ships it."""
