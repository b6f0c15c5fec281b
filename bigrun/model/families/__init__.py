"""Families of models: how each one's configuration becomes a spec, and what its tensors are called."""
