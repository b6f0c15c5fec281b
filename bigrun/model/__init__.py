"""Models as data: specs, layouts and buffers, computed from a configuration alone."""
