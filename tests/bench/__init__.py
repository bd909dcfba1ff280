"""Side by side with the peers; ``python -m tests.bench --help`` from the checkout's root."""
