"""Whether the tokenizer files of one folder agree: where it holds several, only one is used.

Files of one model differ where a fine-tune changed one of them, or a conversion went wrong. No test finds every
difference; the samples are texts on which tokenizers are known to part, and every token that one of them matches as a
whole, at the beginning of a text and within it.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from gptfast_cli.core.errors import CorruptError, UsageError
from gptfast_cli.core.tokenizers.declarations import TOKENIZER_CONFIG, Declarations, read_declarations
from gptfast_cli.core.tokenizers.files import read_vocabulary, vocabulary_files
from gptfast_cli.core.tokenizers.vocabulary import Vocabulary

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

# With "legacy": false a SentencePiece model puts no space before a text that begins with one, and the tokenizer.json
# of most Llama 2 folders does: they part on what hardly anyone types, and agree on the rest.
_TYPED = tuple(sample for sample in SAMPLES if not sample.startswith((" ", "\u2581")))


@dataclass(frozen=True, slots=True)
class Disagreement:
    """Another tokenizer file of a folder that does not say what the one in use says, and where they part."""

    used: Path
    other: Path
    why: str

    def __str__(self) -> str:
        return f"{self.used.name} is used; {self.other.name} beside it {self.why}."


def disagreements(folder: Path) -> Iterator[Disagreement]:
    """Each other tokenizer file of the folder that differs from the one in use, or cannot be read.

    tokenizer_config.json is among them where its add_bos_token or add_eos_token is not followed. Raises CorruptError
    where a JSON file beside them is damaged.
    """
    declared = read_declarations(folder)
    paths = vocabulary_files(folder)
    if len(paths) < 2 and declared.add_bos is None and not declared.add_eos:
        return
    # files are compared as they are, not as transformers' class for Llama would change one of them
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
            yield Disagreement(used, path, f"encodes or decodes {sample!r} otherwise")


def first_difference(ours: Vocabulary, theirs: Vocabulary) -> str | None:
    """The first sample that two vocabularies encode or decode otherwise."""
    return _first_difference(ours, theirs, SAMPLES)


def _read(
    paths: Iterable[Path], declared: Declarations
) -> tuple[list[tuple[Path, Vocabulary]], list[tuple[Path, str]]]:
    """The vocabularies of the files that can be read, and why the others cannot."""
    readable, unreadable = [], []
    for path in paths:
        try:
            readable.append((path, read_vocabulary(path, declared)))
        except CorruptError as error:
            unreadable.append((path, error.message.removeprefix(f"{path}: ")))
    return readable, unreadable


def _not_followed(declared: Declarations, vocabulary: Vocabulary) -> Iterator[str]:
    """What tokenizer_config.json says of the tokens at the ends of a text, and is not done."""
    if None not in (declared.add_bos, vocabulary.adds_bos) and declared.add_bos != vocabulary.adds_bos:
        ends, is_added = ("true", "adds no token") if declared.add_bos else ("false", "adds one")
        yield (
            f'says "add_bos_token": {ends}, but the post-processor {is_added} before a text, and that counts, as in '
            "transformers 5 (transformers 4 followed the flag)"
        )
    if declared.add_eos:
        yield 'says "add_eos_token": true, which is not followed: a prompt that ends with EOS would have no answer'


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
    except UsageError:  # it lacks a token for something in the text
        return None


def _decoded(vocabulary: Vocabulary, ids: list[int]) -> str:
    stream = vocabulary.stream()
    return "".join([*map(stream.push, ids), stream.finish()])
