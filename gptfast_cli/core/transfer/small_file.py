"""A small file read into memory, such as a configuration that is to be looked at before anything is fetched."""

from gptfast_cli.core.errors import CorruptError
from gptfast_cli.core.transfer.digest import new_digest, strongest
from gptfast_cli.core.transfer.fetching import patiently_explained
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
        raise patiently_explained(file.name, fault) from None
    algorithm = strongest(file.hashes)
    if algorithm is not None:
        digest = new_digest(algorithm, len(content))
        digest.update(content)
        if digest.hexdigest() != file.hashes[algorithm]:
            raise CorruptError(f"{file.name}: arrived damaged (its {algorithm} differs).", "Try again.")
    return content
