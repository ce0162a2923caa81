"""GPT-2's alphabet of bytes: how the `tokenizers` library writes tokens that are strings of bytes.

Each byte is one printable character: itself where Latin-1 prints it, else the next one from U+0100 on.
Source: https://github.com/openai/gpt-2, src/encoder.py, bytes_to_unicode.
"""

_PRINTABLE = (*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1))
_OTHERS = tuple(byte for byte in range(256) if byte not in _PRINTABLE)
_CHARACTERS = {byte: chr(byte) for byte in _PRINTABLE} | {byte: chr(256 + n) for n, byte in enumerate(_OTHERS)}
_BYTES = {character: byte for byte, character in _CHARACTERS.items()}


def spelled(token: bytes) -> str:
    """A token in the alphabet."""
    return token.decode("latin-1").translate(_CHARACTERS)


def unspelled(token: str) -> bytes:
    """The bytes of a token in the alphabet; one that is written otherwise, as added tokens are, stands for itself."""
    try:
        return bytes(_BYTES[character] for character in token)
    except KeyError:
        return token.encode()
