"""Tokenizers of every kind that models come with: real files of Mistral, and others made here."""

import json
from base64 import b64decode, b64encode
from collections.abc import Callable, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path

import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

REAL_SENTENCEPIECE = {
    "v1": "tokenizer.model.v1",
    "v2": "mistral_instruct_tokenizer_240216.model.v2",
    "v3": "mistral_instruct_tokenizer_240323.model.v3",
    "v7": "mistral_instruct_tokenizer_241114.model.v7",
}

TEXTS = (
    "",
    "a",
    "Hello, world!",
    " leading space",
    "trailing space ",
    "   three   spaces   within   ",
    " ",
    "     ",
    "line\nbreak\r\n\n\ttab\t",
    "def f(x):\n    return x**2  # code\n",
    "日本語のテキスト、中文文本。한국어",
    "Ünïcödé e\u0301 combining \u0915\u094d\u0937",
    "👨‍👩‍👧‍👦 family 🏳️‍🌈🙂",
    "€ \U0001d518\U0001d52b\U0001d526 \U0001f9ff",
    "نص عربي",
    "▁ a literal mark ▁▁",
    "nul \0 and \x7f controls \x1b[0m",
    "\ufeffbyte order mark \u200b\u00a0 odd spaces \u3000",
    "\ufffd a real replacement character",
    "12345 67.89 1e-5",
    "<0x0A> typed by hand",
)
SPECIAL_TEXTS = ("<s>", "a<s> b", "<s>Hello", "x</s>", "Hello </s> <s>world", "<s><s>", " <s> ")

REAL_TEKKEN = ("tekken_240718.json", "tekken_240911.json")

_CORPUS = [
    *TEXTS,
    "The quick brown fox jumps over the lazy dog. " * 3,
    "she sells sea shells by the sea shore, they said; then the other one went there",
]


def real_model(version: str) -> Path:
    return Path(str(files("mistral_common") / "data" / REAL_SENTENCEPIECE[version]))


def write_trained(folder: Path, **options: object) -> None:
    """A small SentencePiece model with other normalization settings than the real ones."""
    defaults = {"vocab_size": 400, "model_type": "bpe", "byte_fallback": True, "character_coverage": 0.99}
    with (folder / "tokenizer.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(_CORPUS), model_writer=file, minloglevel=9, **(defaults | options)
        )


def rewritten(version: str) -> tokenizers.Tokenizer:
    """A real SentencePiece model as Llama 2's tokenizer.json writes one."""
    vocab, merges = pieces_and_merges(version)
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocab=vocab, merges=merges, fuse_unk=True, byte_fallback=True, unk_token="<unk>")
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


@cache
def pieces_and_merges(version: str) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The pieces of a real model by id, and the merges that their scores imply."""
    from transformers.tokenization_utils_base import generate_merges

    model = sentencepiece.SentencePieceProcessor(model_file=str(real_model(version)))
    ids = range(model.vocab_size())
    vocab = {model.id_to_piece(i): i for i in ids}
    return vocab, generate_merges(vocab, {model.id_to_piece(i): model.get_score(i) for i in ids})


def byte_level() -> tokenizers.Tokenizer:
    """A byte-level BPE in the manner of Llama 3, whose BOS comes from a template inside a Sequence."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    tokenizer.add_tokens(["<café>", "<日 本>"])  # in the letters of the byte alphabet, and not
    template = processors.TemplateProcessing(single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 0)])
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return tokenizer


def metaspaced(scheme: str) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    tokenizer.train_from_iterator(_CORPUS, trainer)
    return tokenizer


def words() -> tokenizers.Tokenizer:
    """A vocabulary of whole words without any decoder."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"w{n}": 3 + n for n in range(40)}}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return tokenizer


def word_pieces() -> tokenizers.Tokenizer:
    """A decoder that looks at its neighbours and has no stream of its own."""
    tokenizer = words()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


JSON_SAMPLES: dict[str, Callable[[], tokenizers.Tokenizer]] = {
    "rewritten": lambda: rewritten("v1"),
    "byte_level": byte_level,
    "metaspace_always": lambda: metaspaced("always"),
    "metaspace_never": lambda: metaspaced("never"),
    "words": words,
    "word_pieces": word_pieces,
}

TRAINED: dict[str, dict[str, object]] = {
    "no_dummy_prefix": {"add_dummy_prefix": False},
    "whitespace_removed": {"remove_extra_whitespaces": True},
    "whitespace_kept": {"remove_extra_whitespaces": False, "normalization_rule_name": "identity"},
    "no_bos": {"bos_id": -1, "eos_id": -1},
    "user_defined": {"user_defined_symbols": ["▁▁", "<tag>"], "unk_surface": "?"},
}


def real_tekken(name: str) -> Path:
    return Path(str(files("mistral_common") / "data" / name))


@cache
def ranked_tokens() -> tuple[bytes, ...]:
    """Real byte-level tokens by rank, as many as make a small vocabulary; its numbers of many digits are made up."""
    content = json.loads(real_tekken(REAL_TEKKEN[0]).read_bytes())
    real = [b64decode(entry["token_bytes"]) for entry in content["vocab"][:2992]]
    return (*real, b"12", b"34", b"45", b"123", b"456", b"789", b"1234", b"6789")


def tiktoken_file(tokens: Sequence[bytes]) -> bytes:
    return b"".join(b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens))


def tekken_content(**config: object) -> dict[str, object]:
    """A small Tekken file of the first versions, which do not list their special tokens; it uses half of its ranks."""
    real = json.loads(real_tekken(REAL_TEKKEN[0]).read_bytes())
    sizes = {"num_vocab_tokens": 3000, "default_vocab_size": 1600, "default_num_special_tokens": 100}
    return {"config": real["config"] | sizes | config, "vocab": real["vocab"][:3000]}


def write_tiktoken(folder: Path) -> None:
    (folder / "tokenizer.model").write_bytes(tiktoken_file(ranked_tokens()))


def write_tekken(folder: Path) -> None:
    (folder / "tekken.json").write_text(json.dumps(tekken_content()))


def write_listed_tekken(folder: Path) -> None:
    """A Tekken file of a later version."""
    texts = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[THINK]")
    listed = [{"rank": rank, "token_str": text, "is_control": True} for rank, text in enumerate(texts)]
    (folder / "tekken.json").write_text(json.dumps(tekken_content(version="v13") | {"special_tokens": listed}))


RANKED: dict[str, Callable[[Path], None]] = {
    "tiktoken": write_tiktoken,
    "tekken": write_tekken,
    "tekken_listed": write_listed_tekken,
}

MODELS = (*REAL_SENTENCEPIECE, *TRAINED)  # the samples that SentencePiece itself reads


def write(folder: Path, sample: str) -> None:
    """Write the tokenizer file of a sample."""
    if sample in REAL_SENTENCEPIECE:
        (folder / "tokenizer.model").write_bytes(real_model(sample).read_bytes())
    elif sample in TRAINED:
        write_trained(folder, **TRAINED[sample])
    elif sample in RANKED:
        RANKED[sample](folder)
    else:
        JSON_SAMPLES[sample]().save(str(folder / "tokenizer.json"))


def declare(folder: Path, name: str, **content: object) -> None:
    """Write one of the JSON files beside a tokenizer."""
    (folder / name).write_text(json.dumps(content), encoding="utf-8")
