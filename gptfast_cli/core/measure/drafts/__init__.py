"""The judge of draft models: what a draft will gain, at which depth and batch size, and why; predicted, then proved."""
