"""Both ends: frames, digests, pickles, shared memory, socket messages."""
