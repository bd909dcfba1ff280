"""Programs on top of the public names."""
