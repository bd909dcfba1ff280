"""The benchmark against other libraries; run ``python -m tests.bench --help`` in the checkout."""
