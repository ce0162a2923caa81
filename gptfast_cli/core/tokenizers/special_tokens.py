"""Which token begins a text and which end one: the facts about a tokenizer that its own file does not settle."""

from dataclasses import dataclass

from gptfast_cli.core.tokenizers.declarations import Declarations
from gptfast_cli.core.tokenizers.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """The resolved ids; a checkpoint's manifest keeps them, so that they are never guessed a second time.

    bos_id:   beginning of sequence, None where the model has none
    add_bos:  whether the model was trained on texts that begin with it
    stop_ids: tokens that end a generation
    """

    bos_id: int | None
    add_bos: bool
    stop_ids: frozenset[int]


def resolve(declared: Declarations, vocabulary: Vocabulary | None) -> SpecialTokens:
    """The special tokens of a folder; without a vocabulary only what is declared by id.

    Stop ids are united: a chat model often declares `<|eot_id|>` in generation_config.json alone and
    `<|end_of_text|>` in config.json alone, and either ends its answer. BOS is the declared token, else the
    vocabulary's own, else the declared id. Whether it is added: a tokenizer.json says so itself, in its
    post-processor; for the others `add_bos_token` counts, and without it BOS is added, as Llama was trained.
    """
    if vocabulary is None:
        return SpecialTokens(bos_id=next(iter(declared.bos_ids), None), add_bos=False, stop_ids=declared.stop_ids)
    bos_id = _bos_id(declared, vocabulary)
    return SpecialTokens(
        bos_id=bos_id,
        add_bos=bos_id is not None and _adds_bos(declared, vocabulary, bos_id),
        stop_ids=declared.stop_ids | _own_stop_ids(declared, vocabulary),
    )


def _bos_id(declared: Declarations, vocabulary: Vocabulary) -> int | None:
    if "bos_token" in declared.roles:  # also where it is null: then the ids in config.json are left-overs
        return _role_id(declared, vocabulary, "bos_token")
    if vocabulary.own_bos_id is not None:
        return vocabulary.own_bos_id
    return next(iter(declared.bos_ids), None)


def _own_stop_ids(declared: Declarations, vocabulary: Vocabulary) -> frozenset[int]:
    if "eos_token" not in declared.roles:
        return vocabulary.own_stop_ids
    eos_id = _role_id(declared, vocabulary, "eos_token")
    return frozenset() if eos_id is None else frozenset({eos_id})


def _role_id(declared: Declarations, vocabulary: Vocabulary, role: str) -> int | None:
    text = declared.roles[role]
    return None if text is None else vocabulary.id_of(text)


def _adds_bos(declared: Declarations, vocabulary: Vocabulary, bos_id: int) -> bool:
    if vocabulary.adds_bos is None:
        return declared.add_bos is not False
    return vocabulary.adds_bos and bos_id == vocabulary.own_bos_id
