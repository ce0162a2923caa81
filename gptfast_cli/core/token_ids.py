"""Token ids are checked against the rows of a model's embedding before they are fed to it."""

from collections.abc import Callable, Iterable

from gptfast_cli.core.errors import UsageError


class TokenIdError(UsageError):
    """A token id without a row in the embedding; its text is in the message where the tokenizer knows it."""

    def __init__(self, token_id: int, n_embeddings: int, text: str | None = None) -> None:
        token = f"id {token_id}" if text is None else f"{text!r:.80} (id {token_id})"
        super().__init__(
            f"Token {token} has no embedding: the model has {n_embeddings:,}, for ids 0 to {n_embeddings - 1}.",
            "Leave it out, or take the tokenizer that the model was trained with.",
        )
        self.token_id = token_id


def check_token_ids(ids: Iterable[int], n_embeddings: int, text_of: Callable[[int], str | None] | None = None) -> None:
    """Raise TokenIdError for the first id that is negative or `n_embeddings` or more; `text_of` names the token."""
    for token_id in ids:
        if not 0 <= token_id < n_embeddings:
            raise TokenIdError(token_id, n_embeddings, None if text_of is None else text_of(token_id))
