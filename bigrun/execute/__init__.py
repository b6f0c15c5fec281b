"""One step of tokens over all devices: engines, forward pass, KV cache, sampling."""
