"""How probable passages of text are to a model, token by token, in batches of bounded size."""
