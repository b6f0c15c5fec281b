"""The version of bigrun."""

__version__ = "0.1.0"
