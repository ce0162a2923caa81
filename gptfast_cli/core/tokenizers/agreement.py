"""Reading a folder's vocabulary; comparison of its tokenizer files, and of the tokenizers of two models.

Files of one model differ where a fine-tune changed one of them, or a conversion went wrong. They are compared on sample
texts on which tokenizers are known to differ, and on every added token.

A draft's token ids are used as its target's, and scores of two models are compared id by id. There sample texts do not
suffice (two swapped tokens would rarely show), so the vocabularies themselves are compared.
"""

import filecmp
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gptfast_cli.core.errors import CorruptError, UsageError
from gptfast_cli.core.quantities import size
from gptfast_cli.core.tokenizers.declarations import TOKENIZER_CONFIG, Declarations, damaged, read_declarations
from gptfast_cli.core.tokenizers.formats import TokenizerFormat, formats
from gptfast_cli.core.tokenizers.tokenizer import Definition, Tokenizer, Vocabulary

_MAX_FILE_BYTES = 100_000_000  # the largest in use: 35 million


def vocabulary_files(folder: Path) -> tuple[Path, ...]:
    """Existing vocabulary files, by ascending rank of their format."""
    names = dict.fromkeys(name for plug in _by_rank() for name in plug.file_names)
    return tuple(path for name in names if (path := folder / name).is_file())


def read_vocabulary(path: Path, declared: Declarations) -> Vocabulary:
    """Read a vocabulary file, by the first format that can. Raises CorruptError with the reason of each format."""
    if path.stat().st_size > _MAX_FILE_BYTES:
        raise damaged(path, f"larger than any tokenizer ({size(path.stat().st_size)})")
    reasons = []
    for plug in _by_rank():
        if path.name in plug.file_names:
            try:
                return plug.read(path, declared)
            except CorruptError as error:
                reasons.append(error.message.removeprefix(f"{path}: "))
    raise damaged(path, "; ".join(reasons))


def _by_rank() -> list[TokenizerFormat]:
    return sorted(formats.values(), key=lambda plug: plug.rank)


SAMPLES = (
    "Hello, world!",
    "The quick brown fox jumps over the lazy dog.",
    "It's what they'd said: we'll see, I'M SURE you've SEEN.",
    "don\u2019t \u201cquote\u201d \u2014 dash\u2026 \u2018end\u2019",
    " one space before",
    "one space after ",
    "   three   spaces   within   ",
    "three   spaces   within   ",
    " ",
    "          ",
    "a\nb\r\nc\n\n\nd\te\t\tf",
    "\n",
    "\n\n  indented",
    "0 12 345 6789 12345678901234567890",
    "3.14159e-10 1,000,000.00 0x1F4A9 50% $5 №7 ½ ²",
    "def f(x: int = 2) -> int:\n    return x**2  # squared\n",
    'for (int i = 0; i < n; ++i) { s[i] = "\\n"; }\n\t}\n',
    '{"key": ["value", null, 1.5e3], "a": {}}',
    "<html><body class='x'>&amp;</body></html>",
    "https://example.org/a/b?c=d&e=%20#f user@example.org",
    "ALLCAPS camelCase snake_case kebab-case PascalCase iOS",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "!!!??? ... ----- ===== ##### ***** /////",
    "Ünïcödé façade naïve Ångström Straße İstanbul ĳ ﬁ",
    "e\u0301 o\u0308 combining, q\u0307\u0323 twice",
    "Ελληνικά и русский, українська ґ",
    "עברית נִקּוּד and العربية مُشَكَّل",
    "हिन्दी क्षेत्र தமிழ் ไทยไม่มีวรรค ខ្មែរ",
    "日本語のテキスト、ひらがなカタカナ。",
    "中文文本\uff0c没有空格。繁體字",
    "한국어 띄어쓰기 \u1112\u1161\u11ab",
    "🙂 👍🏽 👨‍👩‍👧‍👦 🏳️‍🌈 🇩🇪 ☃️ ❤",
    "\U0001d518\U0001d52b\U0001d526 \U00020000 \U0010ffff \ue000",
    "zero\u200bwidth, soft\u00adhyphen, no\u00a0break, \u3000wide, \u2028line",
    "\ufeffbyte order mark and \ufffd",
    "nul \0, escape \x1b[0m, delete \x7f, next line \x85",
    "▁ a mark ▁▁ of SentencePiece, Ġ and Ċ of GPT-2",
    "<0x0A> [UNK] <|notatoken|> typed by hand",
    "<s></s>",
    "[INST][/INST]",
    "<|begin_of_text|><|start_header_id|><|end_header_id|><|eot_id|><|end_of_text|>",
    "<|im_start|><|im_end|><|endoftext|>",
)

# With "legacy": false SentencePiece adds no space before a text that begins with one, while the tokenizer.json of most
# Llama 2 folders does: a known difference on unusual texts, which is not reported.
_TYPED = tuple(sample for sample in SAMPLES if not sample.startswith((" ", "\u2581")))


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A tokenizer file that disagrees with the one in use, and the reason."""

    used: Path
    other: Path
    why: str

    def __str__(self) -> str:
        return f"{self.used.name} is used; {self.other.name} beside it {self.why}."


def disagreements(folder: Path) -> Iterator[Disagreement]:
    """The other tokenizer files of the folder that differ from the one in use, or are unreadable.

    tokenizer_config.json is one of them if its add_bos_token or add_eos_token is not followed. Raises CorruptError for
    a damaged JSON file.
    """
    declared = read_declarations(folder)
    paths = vocabulary_files(folder)
    if len(paths) < 2 and declared.add_bos is None and not declared.add_eos:
        return
    # compare the files themselves, without the changes of transformers' Llama class
    readable, unreadable = _read(paths, replace(declared, is_llama=False))
    if not readable:
        return
    (used, vocabulary), *others = readable
    for why in _not_followed(declared, vocabulary):
        yield Disagreement(used, folder / TOKENIZER_CONFIG, why)
    for path, why in unreadable:
        yield Disagreement(used, path, f"cannot be read: {why}")
    unknown = {"<unk>", declared.roles.get("unk_token")}  # formats differ in how it is decoded
    for path, other in others:
        tokens = (vocabulary.added_tokens.keys() | other.added_tokens.keys()) - unknown
        sample = _first_difference(vocabulary, other, _TYPED) or _first_difference(
            vocabulary, other, _around(sorted(tokens))
        )
        if sample is not None:
            yield Disagreement(used, path, f"encodes or decodes {sample!r} differently")


def first_difference(ours: Vocabulary, theirs: Vocabulary) -> str | None:
    """The first sample that two vocabularies encode or decode differently."""
    return _first_difference(ours, theirs, SAMPLES)


def _read(
    paths: Iterable[Path], declared: Declarations
) -> tuple[list[tuple[Path, Vocabulary]], list[tuple[Path, str]]]:
    """(path, vocabulary) of the readable files, (path, reason) of the others."""
    readable, unreadable = [], []
    for path in paths:
        try:
            readable.append((path, read_vocabulary(path, declared)))
        except CorruptError as error:
            unreadable.append((path, error.message.removeprefix(f"{path}: ")))
    return readable, unreadable


def _not_followed(declared: Declarations, vocabulary: Vocabulary) -> Iterator[str]:
    """Settings of tokenizer_config.json on BOS and EOS that are not followed."""
    if None not in (declared.add_bos, vocabulary.adds_bos) and declared.add_bos != vocabulary.adds_bos:
        ends, is_added = ("true", "adds no token") if declared.add_bos else ("false", "adds one")
        yield (
            f'has "add_bos_token": {ends}, but the post-processor {is_added} before a text, which takes precedence, as '
            "in transformers 5 (transformers 4 followed the flag)"
        )
    if declared.add_eos:
        yield 'has "add_eos_token": true, which is not followed: a prompt that ends with EOS would get no answer'


def _around(tokens: Iterable[str]) -> Iterator[str]:
    for token in tokens:
        yield f"{token}a"
        yield f"a {token} b{token}{token}"


def _first_difference(ours: Vocabulary, theirs: Vocabulary, samples: Iterable[str]) -> str | None:
    for sample in samples:
        ids = _encoded(ours, sample)
        if ids != _encoded(theirs, sample) or (ids and _decoded(ours, ids) != _decoded(theirs, ids)):
            return sample
    return None


def _encoded(vocabulary: Vocabulary, text: str) -> list[int] | None:
    try:
        return vocabulary.encode(text)
    except UsageError:  # the vocabulary lacks a token for a part of the text
        return None


def _decoded(vocabulary: Vocabulary, ids: list[int]) -> str:
    stream = vocabulary.stream()
    return "".join([*map(stream.push, ids), stream.finish()])


@dataclass(frozen=True, slots=True)
class Difference:
    """A difference of two vocabularies, and the value in each; `what` ends in "is", as in "token 5 is"."""

    what: str
    ours: str
    theirs: str


def vocabulary_difference(ours: Tokenizer, theirs: Tokenizer) -> Difference | None:
    """The first difference of two vocabularies; None if they are the same.

    Compares the token of every id, special and added tokens, merges or scores, normalizer, pre-tokenizer, BOS and end
    tokens. Rules of different file formats are compared by sample texts.
    """
    if not _are_from_equal_files(ours, theirs):
        difference = next(_differences(ours.vocabulary, theirs.vocabulary), None)
        if difference is not None:
            return difference
    for what, here, there in (
        ("token that begins a text is", ours.bos_id, theirs.bos_id),
        ("end token is", ours.stop_ids, theirs.stop_ids),
    ):
        if here != there:
            return Difference(what, _listed(here), _listed(there))
    return None


def _are_from_equal_files(ours: Tokenizer, theirs: Tokenizer) -> bool:
    """Whether both were read from identical files with the same declared tokens."""
    if ours.path is None or theirs.path is None or ours.path.name != theirs.path.name:
        return False
    if not filecmp.cmp(ours.path, theirs.path, shallow=False):
        return False
    here, there = read_declarations(ours.path.parent), read_declarations(theirs.path.parent)
    return (here.added, here.named, here.lists_added) == (there.added, there.named, there.lists_added)


def _differences(ours: Vocabulary, theirs: Vocabulary) -> Iterator[Difference]:
    here, there = ours.definition(), theirs.definition()
    yield from _different_tokens(here, there)
    if here.format == there.format:
        yield from _different_rules(here.rules, there.rules)
    elif (sample := first_difference(ours, theirs)) is not None:
        yield Difference(f"tokenizer's encoding of {sample!r:.40} is", "as its file says", "another")


def _different_tokens(here: Definition, there: Definition) -> Iterator[Difference]:
    if here.tokens != there.tokens:
        for token_id in sorted(here.tokens.keys() | there.tokens.keys()):
            ours, theirs = (_shown(each.tokens.get(token_id)) for each in (here, there))
            if ours != theirs:
                yield Difference(f"token {token_id} is", ours, theirs)
    for token_id in sorted(here.special ^ there.special):
        kinds = ["special" if token_id in each.special else "text" for each in (here, there)]
        yield Difference(f"token {token_id}, {_shown(here.tokens.get(token_id))}, is", *kinds)


def _different_rules(here: Mapping[str, Any], there: Mapping[str, Any]) -> Iterator[Difference]:
    for name, ours in here.items():
        if ours != there[name]:
            yield _innermost(name, ours, there[name])


def _innermost(name: str, ours: object, theirs: object) -> Difference:
    """The first difference inside two nested values."""
    one: Any
    other: Any
    if isinstance(ours, dict) and isinstance(theirs, dict):
        key = next(key for key in (*ours, *theirs) if ours.get(key) != theirs.get(key))
        return _innermost(f"{name}, {key},", ours.get(key), theirs.get(key))
    if isinstance(ours, list) and isinstance(theirs, list):
        name = name.removesuffix(",")
        index = next(n for n in range(max(len(ours), len(theirs))) if ours[n : n + 1] != theirs[n : n + 1])
        one, other = (each[index] if index < len(each) else None for each in (ours, theirs))
        if isinstance(one, dict):
            return _innermost(f"{name} {index}", one, other)
        return Difference(f"{name} {index} is", _shown(one), _shown(other))
    return Difference(f"{name} is", _shown(ours), _shown(theirs))


def _shown(value: object) -> str:
    text = "none" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:60]} …"


def _listed(ids: int | frozenset[int] | None) -> str:
    if ids is None or ids == frozenset():
        return "none"
    return str(ids) if isinstance(ids, int) else ", ".join(map(str, sorted(ids)))
