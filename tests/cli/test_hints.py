"""What errors advise: each hint is a next step that leads somewhere."""

from pathlib import Path

import pytest
from safetensors.torch import save_file

from gptfast_cli.bundled import __file__ as bundled
from gptfast_cli.core.checkpoints.reader import open_checkpoint
from gptfast_cli.core.checkpoints.resolve import resolve
from gptfast_cli.core.engine.request import Limits
from gptfast_cli.core.errors import CorruptError, GptFastError, UsageError
from gptfast_cli.core.jobs.convert import ConvertRequest, run
from gptfast_cli.core.settings import Settings
from gptfast_cli.render.failure import named
from gptfast_cli.render.numbers import share
from model_files import drained

TINY = Path(bundled).parent / "tiny"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(tmp_path / "home", tmp_path / "hub")


@pytest.mark.parametrize(
    ("source", "hint"),
    [
        ("nosuch", "fetch a model by its whole name: gptfast download org/name"),
        ("./nosuch", "fetch a model by its whole name: gptfast download org/name"),
        ("org/nosuch", "Fetch it: gptfast download org/nosuch"),
        ("s3://team/drafts", "Fetch it: gptfast download s3://team/drafts"),
        ("tiny", "It is a checkpoint already: gptfast generate -m tiny"),
    ],
)
def test_a_source_that_is_not_here_is_to_be_fetched_where_it_can_be(settings: Settings, source: str, hint: str) -> None:
    with pytest.raises(GptFastError, match="no such folder or file") as caught:
        drained(run(ConvertRequest(source, settings)))
    assert caught.value.hint.endswith(hint)


def test_a_file_of_a_model_leads_to_its_folder_and_any_other_to_convert(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as of_a_checkpoint:
        resolve(str(TINY / "weights-00001.safetensors"), settings)
    assert of_a_checkpoint.value.hint == f"Name its folder: {TINY}"
    (tmp_path / "stories.bin").touch()
    with pytest.raises(UsageError) as of_another:
        resolve(str(tmp_path / "stories.bin"), settings)
    assert of_another.value.hint == f"Convert it: gptfast convert {tmp_path / 'stories.bin'}"


@pytest.mark.parametrize(
    ("longest", "hint"),
    [
        (512, "Shorten the prompt, or take a model with a longer context."),
        (4096, "Shorten the prompt, or raise --max-context, up to 4096."),
    ],
)
def test_max_context_is_advised_where_the_model_holds_more(longest: int, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        Limits(8, 512, frozenset(), longest=longest).check_prompt(600)
    assert caught.value.hint == hint


def test_weights_without_a_tensor_are_called_by_their_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{"architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 64, "vocab_size": 64,'
        ' "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5}'
    )
    save_file({}, tmp_path / "model.safetensors")
    with pytest.raises(CorruptError, match=f"^{tmp_path}: lm_head.weight, "):
        open_checkpoint(tmp_path)


def test_less_memory_is_sought_by_options_that_the_command_has() -> None:
    error = MemoryError()
    assert named(error).hint == "Try a smaller model."
    assert named(error, flags=("--gen-len", "--x")).hint == "Try a smaller model or a smaller --gen-len."
    hint = named(error, flags=("--max-context", "--batch-size")).hint
    assert hint == "Try a smaller model, a smaller --batch-size or a smaller --max-context."


def test_a_share_above_the_whole_is_not_cut() -> None:
    assert [share(part) for part in (0.413, 0.9966, 0.99999, 1, 1.57)] == [
        *("41.3 %", "99.66 %", "99.99 %", "100 %", "157.00 %"),
    ]
