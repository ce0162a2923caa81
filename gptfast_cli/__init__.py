"""Fast text generation from Llama-class models, and a judge of draft models checked by real runs."""

__version__ = "0.1.0"
