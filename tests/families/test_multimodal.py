"""Of a multimodal model gptfast runs the text model, and says so: the numbers are those of the whole one for a text."""

from pathlib import Path

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText, PreTrainedModel

from families.random_models import CASES, SIZES, over
from gptfast_cli.core.checkpoints.reader import open_checkpoint
from gptfast_cli.core.events import Note
from gptfast_cli.core.families import families
from gptfast_cli.core.jobs.convert import ConvertRequest, run
from gptfast_cli.core.models.weights import weight_shapes
from model_files import drained, edit_json, settings_in

VISION = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


def saved(folder: Path, wrapper: str, family: str, vision: str, *, tied: bool) -> PreTrainedModel:
    text = {**SIZES, **next(iter(CASES[family].values())), "model_type": families[family].model_types[0]}
    torch.manual_seed(0)
    config = CONFIG_MAPPING[wrapper](
        text_config=text, vision_config={**VISION, "model_type": vision}, tie_word_embeddings=tied
    )
    model = AutoModelForImageTextToText.from_config(config, attn_implementation="eager").eval()
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize(
    ("wrapper", "family", "vision", "tied"),
    [
        ("gemma3", "gemma3", "siglip_vision_model", True),
        ("mistral3", "ministral3", "pixtral", False),
        ("llava", "llama", "clip_vision_model", False),
    ],
)
def test_logits_of_a_text_are_those_of_the_whole_model(
    tmp_path: Path, wrapper: str, family: str, vision: str, tied: bool
) -> None:
    theirs = saved(tmp_path / "model", wrapper, family, vision, tied=tied)
    checkpoint = open_checkpoint(tmp_path / "model")
    assert checkpoint.notes == (f"Of the {wrapper} model only the text model is used.",)
    assert (checkpoint.config.family, checkpoint.config.tied_embeddings) == (family, tied)
    ours = over(checkpoint.config, {name: checkpoint.weight(name) for name in weight_shapes(checkpoint.config)})
    tokens = torch.randint(3, 90, (1, 60), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = theirs(tokens).logits
        found = ours.logits(ours.forward(tokens, ours.new_cache(1)))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * max(1.0, float(expected.abs().max())))


@pytest.mark.parametrize("tied", [True, False])
def test_it_is_converted_and_verified(tmp_path: Path, tied: bool) -> None:
    saved(tmp_path / "model", "gemma3", "gemma3", "siglip_vision_model", tied=tied)
    events, _ = drained(run(ConvertRequest(str(tmp_path / "model"), settings_in(tmp_path), verify=True)))
    notes = [event.text for event in events if isinstance(event, Note)]
    assert "Of the gemma3 model only the text model is used." in notes
    assert any(note.startswith("Logits are those of transformers") for note in notes)


def test_the_wrapper_says_whether_the_head_is_tied(tmp_path: Path) -> None:
    saved(tmp_path / "model", "gemma3", "gemma3", "siglip_vision_model", tied=False)
    edit_json(tmp_path / "model" / "config.json", lambda values: values["text_config"].update(tie_word_embeddings=True))
    assert not open_checkpoint(tmp_path / "model").config.tied_embeddings
