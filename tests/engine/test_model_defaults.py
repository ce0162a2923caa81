"""Defaults of the model's makers: read as transformers reads them, beaten by flags and rows, carried by checkpoints."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig

from chat_model import chat_model
from generation_requests import requested
from gptfast_cli.core.batch.rows import row_options
from gptfast_cli.core.checkpoints.manifest import MANIFEST_FILE
from gptfast_cli.core.checkpoints.reader import open_checkpoint
from gptfast_cli.core.engine.model_defaults import ModelDefaults, model_defaults, parse_defaults
from gptfast_cli.core.engine.options import MODEL_DEFAULTS, GenerationOptions
from gptfast_cli.core.engine.sampling import Sampling
from gptfast_cli.core.errors import CorruptError
from gptfast_cli.core.events import Note
from gptfast_cli.core.fields import Fields
from gptfast_cli.core.jobs import chat, generate, generate_batch, quantize
from model_files import converted, drained, saved, settings_in

UNSET = GenerationOptions(unset=MODEL_DEFAULTS, max_new_tokens=None)
QWEN = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.05}


def defaults(**config: Any) -> ModelDefaults:
    return parse_defaults(config, max_context=4096)


@pytest.mark.parametrize(
    "config",
    [
        QWEN,
        {"do_sample": True},
        {"do_sample": True, "temperature": 0.6, "top_p": 0.9},
        {"do_sample": True, "top_k": 64, "min_p": 0.05},
        {"do_sample": True, "temperature": None, "top_k": None, "top_p": 1},
    ],
)
def test_absent_fields_have_the_values_that_transformers_gives_them(config: dict[str, Any]) -> None:
    theirs = GenerationConfig(**config)
    theirs.update(**GenerationConfig._get_default_generation_params(), defaults_only=True)
    expected = Sampling(theirs.temperature, theirs.top_k, theirs.top_p, theirs.min_p or 0, theirs.repetition_penalty)
    assert defaults(**config).apply(UNSET).sampling == expected


@pytest.mark.parametrize(
    ("config", "sampling"),
    [
        ({}, Sampling()),
        ({"bos_token_id": 1, "eos_token_id": [2, 3], "transformers_version": "5.0.0"}, Sampling()),
        ({"repetition_penalty": 1.1}, Sampling(repetition_penalty=1.1)),
        ({"do_sample": False, "temperature": 0.6}, Sampling(0.0, 50)),
        ({"temperature": 1.1, "top_p": 0.95}, Sampling(1.1, 50, 0.95)),  # as vLLM reads it
        ({"do_sample": True, "top_k": -1}, Sampling(1.0, 0)),
        ({"do_sample": True, "top_k": 0}, Sampling(1.0, 0)),
    ],
)
def test_what_the_file_says_of_sampling_is_the_default(config: dict[str, Any], sampling: Sampling) -> None:
    assert defaults(**config).apply(UNSET).sampling == sampling


def test_length_and_stop_strings_are_defaults_too() -> None:
    options = defaults(max_new_tokens=2048, stop_strings="###").apply(UNSET)
    assert (options.max_new_tokens, options.stop) == (2048, ("###",))
    assert defaults(stop_strings=["a", "b"]).apply(UNSET).stop == ("a", "b")


@pytest.mark.parametrize("name", sorted(MODEL_DEFAULTS))
def test_a_value_that_was_given_beats_the_models(name: str) -> None:
    of_model = defaults(**QWEN, min_p=0.1, max_new_tokens=9, stop_strings=["x"])
    all_taken, one_given = of_model.apply(UNSET), of_model.apply(GenerationOptions(unset=MODEL_DEFAULTS - {name}))

    def value(options: GenerationOptions, each: str) -> object:
        return getattr(options if hasattr(options, each) else options.sampling, each)

    assert value(one_given, name) == value(GenerationOptions(), name) != value(all_taken, name)
    assert all(value(one_given, each) == value(all_taken, each) for each in MODEL_DEFAULTS - {name})


def test_a_row_beats_a_flag_and_a_flag_the_model() -> None:
    flagged = GenerationOptions(sampling=Sampling(top_k=7), unset=MODEL_DEFAULTS - {"top_k"})
    options = row_options(Fields({"temperature": 0.3}, "row"), defaults(**QWEN).apply(flagged))
    assert options.sampling == Sampling(0.3, 7, 0.95, 0.0, 1.05)


@pytest.mark.parametrize(
    ("config", "notes"),
    [
        ({"eos_token_id": 2}, []),
        (QWEN, ["temperature 0.6, top-k 20, top-p 0.95, repetition-penalty 1.05"]),
        ({"do_sample": True}, ["temperature 1, top-k 50"]),
        ({"do_sample": False, "top_k": 5, "stop_strings": "#", "max_new_tokens": 4}, ["temperature 0, "]),
        ({"num_beams": 4, "no_repeat_ngram_size": 3}, ["as gptfast lacks it", "no_repeat_ngram_size 3, num_beams 4"]),
        ({"typical_p": 0.9, "max_length": 512}, ["typical_p 0.9, max_length 512"]),
        ({"typical_p": 1.0, "num_beams": 1, "no_repeat_ngram_size": 0, "max_length": 4096, "use_cache": True}, []),
    ],
)
def test_one_line_says_what_is_taken_and_one_what_is_not(config: dict[str, Any], notes: list[str]) -> None:
    said = "\n".join(note.text for note in defaults(**config).describe(UNSET))
    assert said.count("\n") + bool(said) <= 2
    assert all(note in said for note in notes)
    assert bool(said) == bool(notes)


def test_the_line_names_no_value_that_a_flag_beats_and_none_that_is_idle() -> None:
    (note,) = defaults(**QWEN).describe(GenerationOptions(unset=MODEL_DEFAULTS - {"top_k"}))
    assert "temperature 0.6, top-p 0.95, rep" in note.text
    greedy = GenerationOptions(sampling=Sampling(0), unset=MODEL_DEFAULTS - {"temperature"})
    (note,) = defaults(**QWEN).describe(greedy)
    assert note.text.startswith("Defaults of the model: repetition-penalty 1.05 (")


@pytest.mark.parametrize(
    "config",
    [
        {"temperature": "hot"},
        {"temperature": -1},
        {"do_sample": 1},
        {"top_k": 2.5},
        {"top_p": 1.5},
        {"repetition_penalty": 0},
        {"max_new_tokens": 0},
        {"stop_strings": [1]},
        {"stop_strings": ""},
    ],
)
def test_a_damaged_value_is_named_with_the_way_around_it(tmp_path: Path, config: dict[str, Any]) -> None:
    folder = saved(tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps(config))
    with pytest.raises(CorruptError) as caught:
        model_defaults(open_checkpoint(folder))
    (name,) = config
    assert {"stop_strings": "stop"}.get(name, name) in caught.value.message.replace("-", "_")
    assert "--no-model-defaults" in caught.value.hint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model whose makers sample at temperature 0.6 from 20 tokens, up to 5 of them."""
    folder = saved(tmp_path_factory.mktemp("model") / "m")
    (folder / "generation_config.json").write_text(json.dumps({**QWEN, "max_new_tokens": 5}))
    return folder


def test_converted_and_quantized_checkpoints_carry_the_defaults(folder: Path, tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    expected = model_defaults(open_checkpoint(folder))
    stored = converted(folder, settings)
    assert not (stored.path / "generation_config.json").exists()  # the model has no tokenizer whose file it could be
    assert model_defaults(open_checkpoint(stored.path)) == expected
    quantized = drained(quantize.run(quantize.QuantizeRequest(settings, stored.name, fidelity=False)))[1]
    assert model_defaults(open_checkpoint(quantized.path)) == expected


def test_the_defaults_are_those_of_the_weights_and_not_of_the_tokenizer(folder: Path, tmp_path: Path) -> None:
    other = chat_model(tmp_path / "other")
    (other / "generation_config.json").write_text(json.dumps({"do_sample": False}))
    stored = converted(folder, settings_in(tmp_path), tokenizer_from=str(other))
    assert (stored.path / "generation_config.json").exists()  # beside the tokenizer, with its end tokens
    assert model_defaults(open_checkpoint(stored.path)) == model_defaults(open_checkpoint(folder))


def test_a_checkpoint_of_an_earlier_version_has_the_defaults_in_its_folder(folder: Path, tmp_path: Path) -> None:
    path = converted(folder, settings_in(tmp_path)).path
    manifest = json.loads((path / MANIFEST_FILE).read_text())
    del manifest["generation_config"]
    (path / MANIFEST_FILE).write_text(json.dumps(manifest))
    assert model_defaults(open_checkpoint(path)).values == {}
    (path / "generation_config.json").write_text(json.dumps(QWEN))
    assert model_defaults(open_checkpoint(path)) == defaults(**QWEN)


def test_a_prompt_a_file_of_prompts_and_a_chat_take_the_same_defaults(folder: Path, tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    options = {"model": str(folder), "settings": settings, "seed": 3, "ignore_eos": True}
    row = tmp_path / "rows.jsonl"
    row.write_text('{"prompt_ids": [5, 6, 7], "seed": 3}\n')

    def texts(**more: Any) -> list[tuple[int, ...]]:
        prompt = requested(generate.GenerateRequest, prompt=(5, 6, 7), **options, **more)
        file = requested(generate_batch.BatchRequest, prompts=row, **options, **more)
        (sample,) = drained(generate.run(prompt))[1].samples
        records = [event.fields for event in drained(generate_batch.run(file))[0] if hasattr(event, "fields")]
        return [sample.token_ids, *(tuple(record["token_ids"]) for record in records)]

    explicit = Sampling(0.6, 20, 0.95, 0.0, 1.05)
    of_model = texts(unset=MODEL_DEFAULTS, max_new_tokens=None)
    assert of_model == texts(sampling=explicit, max_new_tokens=5) != texts(max_new_tokens=5)
    assert len(of_model) == 2 and {len(ids) for ids in of_model} == {5}


def test_the_notes_of_a_job_name_the_defaults(folder: Path, tmp_path: Path) -> None:
    request = requested(
        generate.GenerateRequest,
        prompt=(5, 6, 7),
        model=str(folder),
        settings=settings_in(tmp_path),
        unset=MODEL_DEFAULTS - {"max_new_tokens"},
        max_new_tokens=2,
    )
    events, result = drained(generate.run(request))
    notes = [event.text for event in events if isinstance(event, Note)]
    assert any(note.startswith("Defaults of the model: temperature 0.6, top-k 20") for note in notes)
    assert len(result.samples[0].token_ids) <= 2
    assert result.sampling == Sampling(0.6, 20, 0.95, 0.0, 1.05)


def test_a_chat_takes_the_defaults(tmp_path: Path) -> None:
    folder = chat_model(tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": False, "max_new_tokens": 3}))
    request = requested(
        chat.ChatRequest,
        settings_in(tmp_path),
        model=str(folder),
        unset=MODEL_DEFAULTS,
        max_new_tokens=None,
        ignore_eos=True,
    )
    turns = []
    for _ in range(2):  # of two random seeds
        with drained(chat.open_chat(request))[1] as talk:
            turns.append(drained(talk.say("Hello"))[1])
    assert turns[0].n_generated == 3 and turns[0].text == turns[1].text
