"""How well a model predicts a text, by one of the protocols that published numbers follow."""
