"""How good a model is: perplexity, divergence from another model, and tasks."""
