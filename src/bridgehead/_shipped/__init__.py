"""What travels into the kernel: standard library only, Python 3.8 and later."""
