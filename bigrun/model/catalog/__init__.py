"""Well-known models by short name."""
