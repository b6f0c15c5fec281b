"""The run: parts on their devices, one step at a time."""
