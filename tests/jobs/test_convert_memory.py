"""Converting holds one weight at a time, whichever files it comes from."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import foreign_files as foreign
from gptfast_cli.core.checkpoints.reader import open_checkpoint
from llama_oracle import random_llama

MEASURE = """
import sys
from pathlib import Path
import torch
from gptfast_cli.core.jobs.convert import ConvertRequest, run
from gptfast_cli.core.settings import Settings
source, root = sys.argv[1:]
settings = Settings(home=Path(root) / "home", hf_cache=Path(root) / "hub")

def peak():  # not ru_maxrss, which a child takes over from its parent
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

before = peak()
list(run(ConvertRequest(source, settings, allow_pickle=True)))
print(peak() - before)
"""
WRITERS: dict[str, Callable[..., Path]] = {
    "safetensors": lambda folder, model: model.save_pretrained(folder) or folder,
    "pytorch_model": foreign.write_pytorch_model,
    "pytorch_model of three files": lambda folder, model: foreign.write_pytorch_model(folder, model, 3),
    "gpt_fast": foreign.write_gpt_fast,
    "meta of two files": lambda folder, model: foreign.write_meta(folder, model, 2),
    "llama2_c": lambda folder, model: foreign.write_llama2_c(folder / "model.bin", model, 1).parent,
}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("layout", WRITERS)
def test_converting_holds_one_weight_at_a_time(tmp_path: Path, layout: str) -> None:
    """200 MB in weights of at most 10 MB: the peak may grow by a few of these, and not by the model."""
    sizes = {"hidden_size": 640, "intermediate_size": 1920, "num_attention_heads": 10, "num_key_value_heads": 10}
    model = random_llama(num_hidden_layers=9, vocab_size=2000, **sizes)
    source = WRITERS[layout](tmp_path / "model", model)
    assert open_checkpoint(source, allow_pickle=True).n_bytes > 190e6
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(source), str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 60e6
