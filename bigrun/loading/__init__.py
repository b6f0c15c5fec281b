"""From a checkpoint's tensors to stored parts on devices, and the int8 cache that keeps them."""
