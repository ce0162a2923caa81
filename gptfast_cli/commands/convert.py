"""`gptfast convert`: a model from elsewhere becomes a checkpoint that describes itself."""


def convert() -> None:
    """Turn a Hugging Face model into a checkpoint."""
