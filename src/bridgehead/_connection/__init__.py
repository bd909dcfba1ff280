"""One kernel's policies: order, deadlines, restarts."""
