"""Drafts to be judged: models, prompt lookup, and simulated drafts with an assumed acceptance.

A simulated draft has random weights: its cost does not depend on its tokens, so its speed-up can be measured before it
is trained.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from gptfast_cli.core.drafts.acceptance import AcceptanceReader, AssumedAcceptance, ModelAcceptance, NGramAcceptance
from gptfast_cli.core.engine import shapes
from gptfast_cli.core.engine.build import RuntimeConfig
from gptfast_cli.core.engine.chat import ChatOptions, turn_end_ids
from gptfast_cli.core.engine.load import LoadedModel, load, load_random, open_model
from gptfast_cli.core.engine.request import Limits
from gptfast_cli.core.engine.runner import Runner
from gptfast_cli.core.engine.sampling import SamplingContext, uniform
from gptfast_cli.core.engine.speculative.drafting import NGRAM, SELF, check_rollback, open_draft_model
from gptfast_cli.core.engine.speculative.proposers import Proposal, Proposer
from gptfast_cli.core.engine.speculative.proposers.draft_model import DraftModel
from gptfast_cli.core.engine.speculative.proposers.ngram import NGram
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.events import Job
from gptfast_cli.core.models.decoder import Decoder
from gptfast_cli.core.quantize.allocation import AllocationOptions
from gptfast_cli.core.schemes.plain import NAME as PLAIN
from gptfast_cli.core.settings import Settings


class SimulatedDraft:
    """A draft of random weights, whose tokens are replaced by the known greedy text with probability alpha."""

    may_be_empty = False
    native_runner = None

    def __init__(self, draft: DraftModel, alpha: float) -> None:
        """`alpha`: P(drafted token is accepted | those before it in the round were)."""
        self._draft, self._alpha = draft, alpha
        self._answers: Mapping[tuple[int, ...], Sequence[int]] = {}
        self._n_asked = 0
        self.bytes_per_step = draft.bytes_per_step
        self.begin, self.move = draft.begin, draft.move

    def know(self, answers: Mapping[tuple[int, ...], Sequence[int]]) -> None:
        """Set the target's text after each prompt; after other prompts the draft's own tokens stay."""
        self._answers = answers

    def propose(self, contexts: Sequence[SamplingContext], draft_lengths: Sequence[int]) -> list[Proposal]:
        proposals = self._draft.propose(contexts, draft_lengths)
        self._n_asked += 1
        return [
            self._exchanged(row, context, each)
            for row, (context, each) in enumerate(zip(contexts, proposals, strict=True))
        ]

    def _exchanged(self, row: int, context: SamplingContext, proposal: Proposal) -> Proposal:
        text = self._answers.get(tuple(context.prompt))
        if text is None:
            return proposal
        tokens, n = proposal.tokens.clone(), len(context.generated)
        for position, own in enumerate(text[n : n + len(tokens)]):
            is_right = uniform(row, self._n_asked, position) < self._alpha
            tokens[position] = own if is_right else int(own == 0)  # any other token
        return Proposal(tokens, None)


@dataclass(frozen=True, slots=True)
class JudgeOptions:
    """How to open targets and drafts.

    alpha:            acceptance probability to assume of drafts; None measures it
    n_rows:           maximum batch size
    max_draft_length: maximum tokens drafted in a round
    """

    settings: Settings
    runtime: RuntimeConfig
    alpha: float | None
    n_rows: int
    max_draft_length: int


@dataclass(frozen=True, slots=True)
class DraftCandidate:
    """A draft to judge.

    new_reader:             makes a reader of its acceptance, one for each set of texts
    simulated:              the proposer, if its acceptance is assumed
    n_params, load_seconds: of its model; 0 for prompt lookup
    """

    name: str
    proposer: Proposer
    new_reader: Callable[[], AcceptanceReader]
    n_params: int = 0
    load_seconds: float = 0.0
    simulated: SimulatedDraft | None = None


def is_shape(name: str) -> bool:
    """Whether a name is a SHAPE, such as `llama-2-7b`, or SHAPE:SCHEME, such as `llama-2-7b:int4`."""
    return shapes.is_shape(name) or shapes.is_shape(name.rpartition(":")[0])


def shape_and_storage(name: str) -> tuple[str, AllocationOptions]:
    """Split SHAPE or SHAPE:SCHEME, such as `llama-2-7b:int4-g64`, into its two parts."""
    shape, _, storage = name.rpartition(":")
    return (shape, AllocationOptions(storage)) if shapes.is_shape(shape) else (name, AllocationOptions(PLAIN))


def open_target(name: str | None, options: JudgeOptions) -> Job[LoadedModel]:
    """Load the target, or make it where `name` is a SHAPE; raises what that raises."""
    if name is None or not is_shape(name):
        return (yield from load(name, options.settings, options.runtime))
    return replace((yield from _random(name, options)), name=name)


def target_limits(target: LoadedModel, max_new_tokens: int, chat: ChatOptions) -> Limits:
    """Limits of the target's texts; raises UsageError as `LoadedModel.limits` and `open_prompter` do."""
    turn_ends: frozenset[int] = frozenset() if target.is_random else turn_end_ids(target, chat)
    return target.limits(max_new_tokens, None, turn_end_ids=turn_ends)


def open_candidate(name: str, target: LoadedModel, options: JudgeOptions, *, n_tokens: int) -> Job[DraftCandidate]:
    """Open a draft for a target and texts of up to `n_tokens`.

    Raises UsageError for a draft that does not fit the target and for random weights without an assumed alpha; else
    what loading a model or reading a shape raises.
    """
    check_rollback("--k", options.max_draft_length, target.model)
    if name == NGRAM:
        return DraftCandidate(NGRAM, NGram(options.n_rows), partial(NGramAcceptance, options.max_draft_length))
    is_random = target.is_random or is_shape(name)
    if is_random and options.alpha is None:
        raise UsageError(
            f"{name if is_shape(name) else target.name} has random weights: its acceptance cannot be measured.",
            "Assume an acceptance probability: --assume-alpha 0.8",
        )
    if is_shape(name):
        made = yield from _random(name, options)
        model, seconds = made.model, made.seconds
        _check_vocabulary(name, model, target)
    elif target.is_random:
        loaded = yield from _loaded_for_a_shape(name, target, options)
        model, seconds = loaded.model, loaded.seconds
    else:
        model, seconds = yield from open_draft_model(
            name, target, n_tokens=n_tokens, settings=options.settings, runtime=options.runtime
        )
    check_rollback("--k", options.max_draft_length, model)
    draft = DraftModel(model, options.n_rows)
    n_params = model.config.n_params
    if options.alpha is not None:
        simulated = SimulatedDraft(draft, options.alpha)
        reader = partial(AssumedAcceptance, options.alpha)
        return DraftCandidate(name, simulated, reader, n_params, seconds, simulated)
    return DraftCandidate(name, draft, partial(ModelAcceptance, Runner(model, 1)), n_params, seconds)


def _loaded_for_a_shape(name: str, target: LoadedModel, options: JudgeOptions) -> Job[LoadedModel]:
    if name.startswith(SELF):  # a shape in another scheme is that shape once more
        shape, _ = shape_and_storage(target.name)
        return (yield from _random(f"{shape}:{name.removeprefix(SELF)}", options))
    # a shape does not say which rows of its vocabulary are padding
    opened = open_model(name, options.settings, with_padding=True)
    loaded = yield from load(opened, options.settings, options.runtime, role="Draft")
    _check_vocabulary(loaded.name, loaded.model, target)
    return loaded


def _random(name: str, options: JudgeOptions) -> Job[LoadedModel]:
    shape, storage = shape_and_storage(name)
    return (
        yield from load_random(
            shapes.read_shape(shape), storage, options.runtime, seed=0, settings=options.settings, torch_backend=None
        )
    )


def _check_vocabulary(name: str, draft: Decoder, target: LoadedModel) -> None:
    ours, theirs = target.model.config.vocab_size, draft.config.vocab_size
    if ours != theirs:
        raise UsageError(
            f"{name} cannot draft for {target.name}: it has {theirs:,} tokens, and the target {ours:,}.",
            "Give it the target's vocabulary, as in vocab=32000.",
        )
