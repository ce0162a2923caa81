"""The models among GGUF files: each is a file, or all NAME-0000K-of-0000N.gguf; a repository has one for each type.

They are told apart by the type in the name of the file, as in `Model-8B-Q4_K_M.gguf`. Files of the other parts of a
multimodal model (mmproj), and of the statistics of a quantizer (imatrix), are no models.
"""

import re
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from gptfast_cli.core.errors import NotFoundError, UsageError
from gptfast_cli.core.fields import Fields
from gptfast_cli.core.gguf import PLAIN_TYPES, SUFFIX, GgufTensor, parse_shard_name
from gptfast_cli.core.quantities import size

_TYPE: Final = re.compile(
    r"(?<![a-z0-9])((?:ud-)?i?q\d\w*|t?q\d_\d\w*|mxfp4\w*|nvfp4\w*|b?f16|f32)(?![a-z0-9])", re.IGNORECASE
)
_OTHERS: Final = re.compile(r"mmproj|imatrix", re.IGNORECASE)
_MOST_LISTED: Final = 12


@dataclass(frozen=True, slots=True)
class GgufModelFiles:
    """One model; `label`: the type in its name, such as "Q4_K_M", or the name; `names`: of its files, with slashes."""

    label: str
    names: tuple[str, ...]
    n_bytes: int

    def is_called(self, choice: str) -> bool:
        """Whether a person means it: by its type, or by the name of a file with or without folder and suffix."""
        names = {spelled for name in self.names for spelled in (name, PurePosixPath(name).name)}
        return choice.lower() in {self.label.lower(), *(name.lower() for name in names)} or f"{choice}{SUFFIX}" in names


def gguf_models(sizes: Mapping[str, int]) -> list[GgufModelFiles]:
    """The models of files by their name, by ascending size."""
    groups: dict[str, list[str]] = {}
    for name in sorted(sizes):
        if name.endswith(SUFFIX) and not _OTHERS.search(PurePosixPath(name).name):
            shard = parse_shard_name(name)
            groups.setdefault(name.removesuffix(SUFFIX) if shard is None else shard.stem, []).append(name)
    found = [
        GgufModelFiles(_label(stem), tuple(names), sum(sizes[name] for name in names)) for stem, names in groups.items()
    ]
    return sorted(found, key=lambda model: (model.n_bytes, model.names))


def _label(stem: str) -> str:
    types: list[str] = _TYPE.findall(PurePosixPath(stem).name)
    return types[-1].upper() if types else PurePosixPath(stem).name


def models_in(folder: Path) -> list[GgufModelFiles]:
    """The models of a folder and of those just below it."""
    files = [path for pattern in (f"*{SUFFIX}", f"*/*{SUFFIX}") for path in folder.glob(pattern) if path.is_file()]
    return gguf_models({path.relative_to(folder).as_posix(): path.stat().st_size for path in files})


def choose(models: Iterable[GgufModelFiles], choice: str | None, where: str) -> GgufModelFiles:
    """The model of a choice, or the only one; `where` names a MODEL of which `where:CHOICE` is one.

    Raises NotFoundError with the models that there are, UsageError with them where one has to be named.
    """
    models = list(models)
    found = [model for model in models if choice is None or model.is_called(choice)]
    if len(found) == 1:
        return found[0]
    listed = ", ".join(f"{model.label} ({size(model.n_bytes)})" for model in models[:_MOST_LISTED])
    listed += f" … ({len(models)} in all)" if len(models) > _MOST_LISTED else ""
    if not found:
        raise NotFoundError(f"{where}: has no GGUF file {choice!r}.", f"It has {listed or 'none'}.")
    example = found[0].label if len({model.label for model in found}) == len(found) else found[0].names[0]
    raise UsageError(
        f"{where}: holds {len(found)} models in GGUF files: {listed}.", f"Name one: {shlex.quote(f'{where}:{example}')}"
    )


def first_file(path: Path) -> Path:
    """The file that has the metadata: the file itself, or the first of its model; of a folder the only model's.

    Raises UsageError if a folder holds several.
    """
    if path.is_dir():
        return path / choose(models_in(path), None, str(path)).names[0]
    shard = parse_shard_name(path.name)
    return path if shard is None else path.with_name(shard.siblings()[0])


def scheme_of(metadata: Fields, tensors: Iterable[GgufTensor]) -> str:
    """What a person calls it: the type that the metadata or else most bytes have; plain if nothing is quantized."""
    n_bytes: Counter[str] = Counter()
    for tensor in tensors:
        n_bytes[tensor.type.name] += tensor.end - tensor.start
    quantized = [name for name, _ in n_bytes.most_common() if name not in PLAIN_TYPES]
    if not quantized:
        return _PLAIN
    declared = metadata.values.get("general.file_type")
    return _FILE_TYPES.get(declared, quantized[0]) if isinstance(declared, int) else quantized[0]


_PLAIN: Final = "plain"  # NAME of schemes.plain, which loads PyTorch
_FILE_TYPES: Final = {
    2: "Q4_0",
    3: "Q4_1",
    7: "Q8_0",
    8: "Q5_0",
    9: "Q5_1",
    10: "Q2_K",
    11: "Q3_K_S",
    12: "Q3_K_M",
    13: "Q3_K_L",
    14: "Q4_K_S",
    15: "Q4_K_M",
    16: "Q5_K_S",
    17: "Q5_K_M",
    18: "Q6_K",
    21: "Q2_K_S",
    25: "IQ4_NL",
    30: "IQ4_XS",
    38: "MXFP4_MOE",
}
"""Names of mixtures of types, by the number in `general.file_type`."""
