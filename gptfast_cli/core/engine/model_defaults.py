"""Defaults of generation that a model's makers ship in generation_config.json.

A flag or a field of a row beats them; they beat the defaults of this program. Absent fields have the values that
transformers gives them (GenerationConfig._get_default_generation_params: temperature 1, top_k 50), if the file says
anything of sampling; a file with token ids alone, as base models have, leaves this program's defaults. As in vLLM, a
file with a temperature and without `do_sample` means sampling.

Only `generate` reads them: `eval`, `bench` and `speculate` measure with the sampling that their options name.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Final

from gptfast_cli.core.checkpoints.checkpoint import GENERATION_CONFIG, Checkpoint
from gptfast_cli.core.engine.options import GenerationOptions, check_stops
from gptfast_cli.core.engine.sampling import Sampling, check
from gptfast_cli.core.errors import CorruptError, GptFastError
from gptfast_cli.core.events import Job, Note
from gptfast_cli.core.fields import Fields

_SAMPLING: Final = tuple(field.name for field in fields(Sampling))

_TOP_K, _TEMPERATURE = 50, 1.0  # of transformers, where the field is absent
_OF_SAMPLING: Final = ("do_sample", "temperature", "top_k", "top_p", "min_p")

# fields that change the text and that no option of ours stands for, with their values without effect
_LACKING: Final[Mapping[str, tuple[object, ...]]] = {
    "assistant_ensemble_weight": (0, 1),
    "bad_words_ids": ([],),
    "begin_suppress_tokens": ([],),
    "constraints": ([],),
    "diversity_penalty": (0,),
    "dola_layers": (),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "exponential_decay_length_penalty": (),
    "force_words_ids": ([],),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "frequency_penalty": (0,),
    "guidance_scale": (1,),
    "max_time": (),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "no_repeat_ngram_size": (0,),
    "num_beam_groups": (1,),
    "num_beams": (1,),
    "penalty_alpha": (0,),
    "presence_penalty": (0,),
    "sequence_bias": ({}, []),
    "suppress_tokens": ([],),
    "token_healing": (False,),
    "top_h": (1,),
    "typical_p": (1,),
    "watermarking_config": (),
}
_MOST_SHOWN = 40  # characters of a value


@dataclass(frozen=True, slots=True)
class ModelDefaults:
    """The contents of generation_config.json.

    values:  defaults by the name of the option, of MODEL_DEFAULTS
    lacking: fields with an effect on the text that this program does not have
    """

    values: Mapping[str, Any]
    lacking: Mapping[str, object]

    def apply(self, options: GenerationOptions) -> GenerationOptions:
        """The options, with defaults for those that nobody gave."""
        taken = {name: value for name, value in self.values.items() if name in options.unset}
        sampling = {name: taken.pop(name) for name in _SAMPLING if name in taken}
        return replace(options, sampling=replace(options.sampling, **sampling), **taken, unset=frozenset())

    def describe(self, options: GenerationOptions) -> Iterator[Note]:
        """Notes: the defaults that are taken, in one line, and the fields that are not."""
        is_greedy = self.apply(options).sampling.is_greedy
        idle = ("top_k", "top_p", "min_p") if is_greedy else ()
        taken = [
            f"{name.replace('_', '-')} {_shown(value)}"
            for name, value in self.values.items()
            if name in options.unset and name not in idle
        ]
        if taken:
            yield Note(f"Defaults of the model: {', '.join(taken)} (ignore them: --no-model-defaults)")
        if self.lacking and options.unset:
            named = ", ".join(f"{name} {_shown(value)}" for name, value in self.lacking.items())
            yield Note(f"Ignored from its {GENERATION_CONFIG}, as gptfast lacks it: {named}")


def model_defaults(checkpoint: Checkpoint) -> ModelDefaults:
    """The defaults of a model; none without a generation_config.json.

    Raises CorruptError for a value of the wrong type or out of its range.
    """
    try:
        return parse_defaults(checkpoint.generation_config, checkpoint.config.max_context)
    except GptFastError as error:
        raise CorruptError(
            f"{checkpoint.name}: {error.message}", "Generate without the defaults in it: --no-model-defaults"
        ) from error


def with_model_defaults(options: GenerationOptions, checkpoint: Checkpoint) -> Job[GenerationOptions]:
    """The options with the model's defaults for those that nobody gave; notes what they are.

    Raises what `model_defaults` raises, unless every option was given.
    """
    if not options.unset:
        return options
    defaults = model_defaults(checkpoint)
    yield from defaults.describe(options)
    return defaults.apply(options)


def parse_defaults(config: Mapping[str, Any], max_context: int) -> ModelDefaults:
    """The defaults in the fields of a generation_config.json, of a model with a context of so many tokens.

    Raises CorruptError for a value of the wrong type, UsageError for one out of range.
    """
    given = Fields(config, GENERATION_CONFIG)
    values: dict[str, Any] = {}
    if any(name in given for name in _OF_SAMPLING):
        temperature = given.number("temperature", _TEMPERATURE, minimum=0)
        values["temperature"] = temperature if given.flag("do_sample", default=True) else 0.0
        values["top_k"] = max(0, given.integer("top_k", _TOP_K, minimum=-1))  # -1 is vLLM's word for off
    for name in ("top_p", "min_p", "repetition_penalty"):
        if name in given:
            values[name] = given.number(name, minimum=0)
    check(Sampling(**values))
    if "max_new_tokens" in given:
        values["max_new_tokens"] = given.integer("max_new_tokens")
    if "stop_strings" in given:
        stops = given.values["stop_strings"]
        values["stop"] = (stops,) if isinstance(stops, str) else given.texts("stop_strings")
        check_stops(values["stop"])
    return ModelDefaults(values, dict(_lacking(given, max_context, values)))


def _lacking(given: Fields, max_context: int, values: Mapping[str, Any]) -> dict[str, object]:
    lacking = {
        name: given.values[name]
        for name in sorted(_LACKING)
        if name in given and given.values[name] not in _LACKING[name]
    }
    if "max_length" in given and "max_new_tokens" not in values and given.integer("max_length") < max_context:
        lacking["max_length"] = given.values["max_length"]
    return lacking


def _shown(value: object) -> str:
    match value:
        case float():
            return f"{value:g}"
        case tuple():
            shown = ", ".join(json.dumps(each) for each in value)
        case _:
            shown = json.dumps(value)
    return shown if len(shown) <= _MOST_SHOWN else shown[:_MOST_SHOWN] + " …"
