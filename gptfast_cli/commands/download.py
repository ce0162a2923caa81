"""`gptfast download`: fetches a model from the Hugging Face Hub or S3."""

from gptfast_cli.commands.unbuilt import not_built


def download() -> None:
    """Fetch a model from the Hugging Face Hub or S3 (not built yet)."""
    not_built("download")
