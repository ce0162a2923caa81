"""The tokenizer of a model's folder as a new checkpoint takes it over."""

from pathlib import Path

from gptfast_cli.core.checkpoints.manifest import MANIFEST_FILE, read_manifest
from gptfast_cli.core.checkpoints.writer import TokenizerFiles
from gptfast_cli.core.tokenizers import open_tokenizer, special_tokens, tokenizer_files


def tokenizer_copy(folder: Path) -> TokenizerFiles:
    """The files to copy and the special tokens; without files where there are none, but with the ids declared.

    Raises CorruptError where a manifest, or the tokenizer of a folder without one, cannot be read.
    """
    if (folder / MANIFEST_FILE).is_file():
        entry = read_manifest(folder).tokenizer
        if entry is not None:
            files = tuple(folder / name for name in entry.files)
            return TokenizerFiles(files, entry.bos_id, entry.stop_ids, entry.add_bos)
    files = tokenizer_files(folder) if open_tokenizer(folder) else ()
    special = special_tokens(folder)
    return TokenizerFiles(files, special.bos_id, tuple(sorted(special.stop_ids)), special.add_bos)
