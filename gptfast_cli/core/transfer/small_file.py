"""A small file read into memory, such as a configuration that is to be looked at before anything is fetched."""

from gptfast_cli.core.errors import CorruptError
from gptfast_cli.core.transfer.patience import given_up
from gptfast_cli.core.transfer.remote import PassingError, RemoteFile

_MOST_BYTES = 10_000_000


def read_small(file: RemoteFile) -> bytes:
    """The bytes of a small file; raises CorruptError where they are too many or their hash differs, NetworkError."""
    content = b""
    try:
        with file.open(0, None) as body:
            for chunk in body.chunks():
                content += chunk
                if len(content) > _MOST_BYTES:
                    raise CorruptError(f"{file.name}: is larger than any such file.")
    except PassingError as fault:
        raise given_up(file.name, fault) from None
    if file.checksum is not None:
        digest = file.checksum.begin(len(content))
        digest.update(content)
        if not file.checksum.is_of(digest):
            raise CorruptError(f"{file.name}: arrived damaged (its {file.checksum.algorithm} differs).", "Try again.")
    return content
