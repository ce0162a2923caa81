"""Tokenizers in GGUF metadata: ids and texts are those of SentencePiece, of transformers, of Mistral's own code."""

import json
from base64 import b64decode
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
import pytest
import regex
import sentencepiece
import tokenizers
from mistral_common.tokens.tokenizers.tekken import Tekkenizer
from tokenizers import models, pre_tokenizers, trainers

import tokenizer_samples as samples
from gptfast_cli.core.errors import CorruptError, UsageError
from gptfast_cli.core.tokenizers import Tokenizer, open_tokenizer, special_tokens, tokenizer_folder
from gptfast_cli.core.tokenizers.chat.template_files import read_templates
from gptfast_cli.core.tokenizers.tokenizer import spelled

Write = Callable[[gguf.GGUFWriter], None]
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


def written(path: Path, write: Write) -> Path:
    """A file with a vocabulary and nothing else."""
    writer = gguf.GGUFWriter(path, "llama")
    write(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def opened(tmp_path: Path, write: Write) -> Tokenizer:
    folder = tokenizer_folder(written(tmp_path / "model.gguf", write), tmp_path / "home")
    tokenizer = open_tokenizer(folder)
    assert tokenizer is not None
    return tokenizer


def add_sentencepiece(
    writer: gguf.GGUFWriter, model: Path, *, dummy_prefix: bool = True, user_defined: Sequence[str] = ()
) -> None:
    """What llama.cpp's converter writes of a tokenizer.model."""
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(model))
    ids = range(pieces.vocab_size())
    kinds = [(pieces.is_unknown, UNKNOWN), (pieces.is_control, CONTROL), (pieces.is_byte, BYTE)]
    kinds += [(pieces.is_unused, UNUSED), (lambda i: pieces.id_to_piece(i) in user_defined, USER_DEFINED)]
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([pieces.id_to_piece(i) for i in ids])
    writer.add_token_scores([pieces.get_score(i) for i in ids])
    writer.add_token_types([next((kind for is_kind, kind in kinds if is_kind(i)), NORMAL) for i in ids])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    if not dummy_prefix:
        writer.add_add_space_prefix(False)


@pytest.mark.parametrize("version", samples.REAL_SENTENCEPIECE)
def test_a_real_sentencepiece_vocabulary_encodes_and_decodes_as_its_model(tmp_path: Path, version: str) -> None:
    model = samples.real_model(version)
    ours = opened(tmp_path, lambda writer: add_sentencepiece(writer, model))
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(model))
    for text in samples.TEXTS:
        ids = theirs.encode(text)
        assert ours.encode(text, bos=False) == ids, text
        assert ours.decode(ids) == theirs.decode(ids), text
    assert ours.encode("Hello") == [1, *theirs.encode("Hello")]
    assert (ours.bos_id, ours.stop_ids) == (1, {2})


@pytest.mark.parametrize("options", [{"add_dummy_prefix": False}, {"user_defined_symbols": ["▁▁", "<tag>"]}])
def test_rules_of_a_sentencepiece_vocabulary_are_kept(tmp_path: Path, options: dict[str, Any]) -> None:
    rules = {"remove_extra_whitespaces": False, "normalization_rule_name": "identity"}
    samples.write_trained(tmp_path, **rules, **options)
    model = tmp_path / "tokenizer.model"
    prefix = options.get("add_dummy_prefix", True)
    own = options.get("user_defined_symbols", ())
    ours = opened(tmp_path, lambda writer: add_sentencepiece(writer, model, dummy_prefix=prefix, user_defined=own))
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(model))
    for text in (*samples.TEXTS, "a<tag>b  c", "<tag>"):
        ids = theirs.encode(text)
        assert ours.encode(text, bos=False) == ids, text
        assert ours.decode(ids) == theirs.decode(ids), text


def add_byte_level(
    writer: gguf.GGUFWriter,
    pre: str,
    vocab: dict[str, int],
    merges: list[tuple[str, str]],
    kinds: dict[str, int] | None = None,
) -> None:
    tokens = sorted(vocab, key=vocab.__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([(kinds or {}).get(token, NORMAL) for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in merges])


@cache
def trained() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A byte-level vocabulary and its merges."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(samples.TEXTS * 3 + ("The quick brown fox, it's 12345 DON'T",) * 9, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


@pytest.mark.parametrize(("pre", "name"), [("qwen2", "Qwen2Tokenizer"), ("gpt-2", "GPT2Tokenizer")])
def test_a_byte_level_vocabulary_encodes_and_decodes_as_the_class_of_transformers(
    tmp_path: Path, pre: str, name: str
) -> None:
    import transformers

    vocab, merges = trained()
    theirs = getattr(transformers, name)(vocab=vocab, merges=merges)
    ours = opened(tmp_path, lambda writer: add_byte_level(writer, pre, vocab, merges, {"<|endoftext|>": CONTROL}))
    for text in (*samples.TEXTS, "a<|endoftext|>b", "e\u0301 12345 it's IT'S\n\n x"):
        ids = theirs.encode(text, add_special_tokens=False)
        assert ours.encode(text, bos=False) == ids, text
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


# the expressions of llama.cpp, src/llama-vocab.cpp, which spell capitals out where the original ones have (?i:...)
ENDINGS = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
SPACES = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
CL100K = ENDINGS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*" + SPACES
QWEN35 = ENDINGS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*" + SPACES
SEED = ENDINGS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+" + SPACES
LETTERS = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]%s[\p{Ll}\p{Lm}\p{Lo}\p{M}]%s"
GPT4O = (
    f"{LETTERS % ('*', '+')}{ENDINGS}?|{LETTERS % ('+', '*')}{ENDINGS}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*" + SPACES
)
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
EXPRESSIONS = {
    "llama-bpe": (CL100K,),
    "dbrx": (CL100K,),
    "smaug-bpe": (CL100K,),
    "qwen35": (QWEN35,),
    "seed-coder": (SEED,),
    "gpt-4o": (GPT4O,),
    "refact": (r"\p{N}", GPT2),
    "smollm": (r"\p{N}", GPT2),
    "olmo": (GPT2,),
}
CODE = "def f(x):\n    return x//2  # it's 1234567 IT'LL CamelCaseWords HTTPServer's\r\n\t\tend/\n/"


def split(expression: str, text: str) -> Iterator[str]:
    """Matches, and what stands between them."""
    end = 0
    for match in regex.finditer(expression, text):
        yield from filter(None, (text[end : match.start()], match[0]))
        end = match.end()
    yield from filter(None, (text[end:],))


@pytest.mark.parametrize("pre", EXPRESSIONS)
def test_words_are_those_of_llama_cpp(tmp_path: Path, pre: str) -> None:
    vocab, merges = trained()
    ours = opened(tmp_path, lambda writer: add_byte_level(writer, pre, vocab, merges))
    words = tokenizers.Tokenizer.from_file(str(ours.path)).pre_tokenizer
    for text in (*samples.TEXTS, CODE):
        expected = [text]
        for expression in EXPRESSIONS[pre]:
            expected = [part for word in expected for part in split(expression, word)]
        assert [word for word, _ in words.pre_tokenize_str(text)] == [spelled(word.encode()) for word in expected], text


def ranked_merges(tokens: list[bytes]) -> list[tuple[str, str]]:
    """The last merge of each token, as tiktoken's algorithm makes it of tokens before it."""
    ranks = {token: rank for rank, token in enumerate(tokens)}
    found = []
    for token, rank in ranks.items():
        parts = [bytes([byte]) for byte in token]
        while len(parts) > 2:
            pairs = [(ranks.get(a + b, rank), at) for at, (a, b) in enumerate(pairwise(parts))]
            best, at = min(pairs)
            if best >= rank:
                break
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        if len(parts) == 2:
            found.append((spelled(parts[0]), spelled(parts[1])))
    return found


@pytest.mark.parametrize("name", samples.REAL_TEKKEN)
def test_a_real_tekken_vocabulary_encodes_and_decodes_as_mistrals_code(tmp_path: Path, name: str) -> None:
    content = json.loads(samples.real_tekken(name).read_bytes())
    sizes = content["config"]
    n_special, n_ranks = sizes["default_num_special_tokens"], 20_000  # of 130,000, whose merges take a minute
    small = content | {"vocab": content["vocab"][:n_ranks]}
    small["config"] = sizes | {"default_vocab_size": n_special + n_ranks, "num_vocab_tokens": n_ranks}
    file = tmp_path / "tekken_240718.json"
    file.write_text(json.dumps(small))
    theirs = Tekkenizer.from_file(file)
    ranks = [b64decode(entry["token_bytes"]) for entry in small["vocab"]]
    special = ["<unk>", "<s>", "</s>", *(f"<SPECIAL_{n}>" for n in range(3, n_special))]
    vocab = {text: n for n, text in enumerate([*special, *map(spelled, ranks)])}
    kinds = dict.fromkeys(special, CONTROL)

    def write(writer: gguf.GGUFWriter) -> None:
        add_byte_level(writer, "tekken", vocab, ranked_merges(ranks), kinds)
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)

    ours = opened(tmp_path, write)
    for text in (*samples.TEXTS, CODE, "ΑΒγδ Straße ǅ éÉ"):
        ids = theirs.encode(text, bos=False, eos=False)
        assert ours.encode(text, bos=False) == ids, text
        assert ours.decode(ids) == theirs.decode(ids), text
    assert ours.encode("Hello")[0] == 1  # as llama.cpp, where the file does not say


def test_tokens_of_each_kind_and_roles_are_kept(tmp_path: Path) -> None:
    vocab, merges = trained()
    n = len(vocab)
    more = {"<|im_start|>": n, "<|im_end|>": n + 1, "<think>": n + 2, "[PAD703]": n + 3, "[PAD704]": n + 4}
    kinds = {"<|endoftext|>": CONTROL, "<|im_start|>": CONTROL, "<|im_end|>": CONTROL, "<think>": USER_DEFINED}
    kinds |= {"[PAD703]": UNUSED, "[PAD704]": UNUSED}

    def write(writer: gguf.GGUFWriter) -> None:
        add_byte_level(writer, "qwen2", vocab | more, merges, kinds)
        writer.add_eos_token_id(0)
        writer.add_bos_token_id(0)
        writer.add_add_bos_token(False)
        writer.add_chat_template([{"name": "default", "template": "{{ a }}"}, {"name": "tool_use", "template": "b"}])

    ours = opened(tmp_path, write)
    assert ours.encode("<|im_start|>a<think>[PAD703]")[:1] == [n]
    assert n + 2 in ours.encode("a<think>b")
    assert ours.decode([n, n + 2, n + 1]) == "<think>"
    assert ours.vocab_size == n + 3  # without padding
    assert (ours.stop_ids, ours.special.add_bos) == ({0, n + 1}, False)  # <|im_end|> is known by its name
    assert ours.path is not None
    assert read_templates(ours.path.parent) == {"default": "{{ a }}", "tool_use": "b"}


def test_files_are_made_once_for_the_same_metadata(tmp_path: Path) -> None:
    vocab, merges = trained()
    first = opened(tmp_path, lambda writer: add_byte_level(writer, "qwen2", vocab, merges))
    assert first.path is not None
    first.path.write_text(first.path.read_text())
    changed = first.path.stat().st_mtime_ns
    assert opened(tmp_path, lambda writer: add_byte_level(writer, "qwen2", vocab, merges)).path == first.path
    assert first.path.stat().st_mtime_ns == changed
    other = opened(tmp_path, lambda writer: add_byte_level(writer, "gpt-2", vocab, merges))
    assert other.path is not None and other.path.parent.parent == first.path.parent.parent != other.path.parent


def test_a_file_without_a_tokenizer_has_none(tmp_path: Path) -> None:
    folder = tokenizer_folder(
        written(tmp_path / "model.gguf", lambda writer: writer.add_tokenizer_model("none")), tmp_path
    )
    assert open_tokenizer(folder) is None
    assert special_tokens(folder).stop_ids == frozenset()


def add_tokens(writer: gguf.GGUFWriter, **changes: Any) -> None:
    vocab, merges = trained()
    add_byte_level(writer, changes.get("pre", "qwen2"), vocab, changes.get("merges", merges))
    if "bos" in changes:
        writer.add_bos_token_id(changes["bos"])


WRONG: dict[str, tuple[Write, type[Exception], str]] = {
    "unknown rules": (lambda w: add_tokens(w, pre="new-bpe"), UsageError, r"'new-bpe' \(tokenizer\.ggml\.pre\)"),
    "no rules": (lambda w: add_tokens(w, pre="default"), UsageError, "'default'"),
    "unknown kind": (lambda w: w.add_tokenizer_model("rwkv"), UsageError, r"kind 'rwkv' \(tokenizer\.ggml\.model\)"),
    "no tokens": (lambda w: w.add_tokenizer_model("gpt2"), CorruptError, "tokenizer.ggml.tokens: 0 of them"),
    "a role beyond": (lambda w: add_tokens(w, bos=99_999), CorruptError, "bos_token_id: 99999 is none of"),
    "half a merge": (lambda w: add_tokens(w, merges=[("ab", "")]), CorruptError, "merges: 0: 'ab ' is no pair"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_vocabulary_that_cannot_be_read_is_refused_by_name(tmp_path: Path, name: str) -> None:
    write, kind, why = WRONG[name]
    path = written(tmp_path / "model.gguf", write)
    with pytest.raises(kind, match=why) as refused:
        tokenizer_folder(path, tmp_path / "home")
    if kind is UsageError:
        assert "gptfast convert model.gguf --tokenizer-from MODEL" in refused.value.hint


def test_merges_of_tokens_that_there_are_not_are_damage(tmp_path: Path) -> None:
    with pytest.raises(CorruptError, match="out of vocabulary"):
        opened(tmp_path, lambda writer: add_tokens(writer, merges=[("nosuch", "token")]))


def test_a_folder_has_its_own_tokenizer(tmp_path: Path) -> None:
    assert tokenizer_folder(tmp_path, tmp_path / "home") == tmp_path
