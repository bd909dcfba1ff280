"""Where a kernel comes from: everything up to an open transport."""
