"""Checkpoint files of other programs, read as named tensors."""
