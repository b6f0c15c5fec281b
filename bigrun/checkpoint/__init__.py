"""Checkpoints behind one interface: what tensors there are, and their rows as they are on the disk."""
