"""File formats: safetensors, torch's .bin and GGUF."""
