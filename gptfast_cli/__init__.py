"""Fast text generation on plain PyTorch, and a judge of draft models whose predictions are checked by real runs."""

__version__ = "0.1.0"
