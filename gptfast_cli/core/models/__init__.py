"""The decoder: its weights by name, its KV cache, and the forward pass in the operations of a backend."""
