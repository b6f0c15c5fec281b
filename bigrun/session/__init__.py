"""From a model's name to a loaded model, and from a prompt to its tokens."""
