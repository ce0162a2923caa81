"""Fast text generation from Llama-class models, and the truth about draft models."""

__version__ = "0.1.0"
