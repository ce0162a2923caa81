"""A half-typed command line, split into words as the shell would split it."""

import shlex


def split_line(line: str) -> list[str]:
    """The words up to the cursor, without their quotes; the last one is being typed, and is empty after a blank."""
    lexer = shlex.shlex(f"{line}|", posix=True)  # the mark tells a blank between words from one that is quoted
    lexer.whitespace_split = True
    lexer.commenters = ""
    words: list[str] = []
    try:
        words.extend(lexer)
    except ValueError:  # a quote is still open
        words.append(lexer.token)
    words[-1] = words[-1][:-1]
    return words


def kept_length(line: str, end: str) -> int:
    """How many characters of the last word the shell keeps as they are where it replaces only the line's `end`.

    bash breaks words at colons too: of `org/name:int` it replaces `int`, and keeps nine characters.
    """
    return len(split_line(line.removesuffix(end))[-1])
