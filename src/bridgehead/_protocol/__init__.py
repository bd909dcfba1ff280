"""Our end of the protocol, sans-I/O."""
