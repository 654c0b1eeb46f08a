"""Decode kernels: FORMAT.md section 8 over many tensors at once, one interface, the same bits from each."""
