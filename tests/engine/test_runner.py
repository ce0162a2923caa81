"""A runner whose steps are prepared for one shape feeds the same tokens, and free rows lose nothing by it."""

import pytest
import torch

from gptfast_cli.core.engine.compiled import fixed_step
from gptfast_cli.core.engine.runner import Runner
from gptfast_cli.core.models.transformer import Transformer
from llama_oracle import ours, random_llama


@pytest.fixture(scope="module")
def model() -> Transformer:
    return ours(random_llama())


def fixed(model: Transformer, n_rows: int, n_tokens: int = 300) -> Runner:
    runner = Runner(model, n_rows)
    forward = fixed_step(model, model.next_logits)
    runner.prepare(n_tokens, prefill=forward, decode=forward)
    runner.warm_up()
    return runner


def test_a_step_of_fixed_shape_gives_the_same_bits(model: Transformer) -> None:
    prepared, plain = fixed(model, 4), Runner(model, 4)
    for runner in (prepared, plain):
        for row in range(2):
            runner.prefill(row, [1, 5 + row, 9])
    for token in range(20):
        assert torch.equal(prepared.step([token, 50]).whole, plain.step([token, 50]).whole)


def test_a_free_row_that_runs_along_keeps_what_it_holds(model: Transformer) -> None:
    runner = fixed(model, 3)
    prompt = list(range(10, 40))
    runner.prefill(2, prompt)
    runner.prefill(0, [1, 2, 3])
    for token in range(5):
        runner.step([token])
    assert runner.reuse_prefix(2, [*prompt, 7]) == len(prompt)
    alone = Runner(model, 1)
    alone.prefill(0, prompt)
    assert torch.equal(runner.prefill(2, [7]).whole, alone.prefill(0, [7]).whole)


def test_warming_up_leaves_what_rows_hold(model: Transformer) -> None:
    runner, alone = Runner(model, 2), Runner(model, 1)
    runner.prefill(0, list(range(50)))
    alone.prefill(0, list(range(50)))
    forward = fixed_step(model, model.next_logits)
    runner.prepare(60, prefill=forward, decode=forward)
    runner.warm_up()
    assert torch.equal(runner.step([7]).whole, alone.step([7]).whole)


def test_room_is_made_once_and_for_all(model: Transformer) -> None:
    runner = fixed(model, 2, n_tokens=256)
    before = [tensor.data_ptr() for tensor in runner.tensors()]
    runner.prefill(0, [1] * 250)
    for _ in range(6):
        runner.step([5])
    assert [tensor.data_ptr() for tensor in runner.tensors()] == before


def test_a_row_that_is_full_already_gets_room_to_run_along(model: Transformer) -> None:
    runner = Runner(model, 2)
    runner.prefill(1, [1] * 256)
    forward = fixed_step(model, model.next_logits)
    runner.prepare(100, decode=forward)
    runner.warm_up()
    assert runner.reuse_prefix(0, [1] * 300) == 256


def test_the_model_lists_every_tensor_of_its_weights(model: Transformer) -> None:
    listed = {tensor.data_ptr() for tensor in model.tensors()}
    assert sum(tensor.nbytes for tensor in model.tensors()) >= model.weights.n_bytes
    assert len(listed) == len(list(model.tensors()))


def test_an_emptied_runner_starts_afresh_in_the_room_that_it_had(model: Transformer) -> None:
    used, fresh = fixed(model, 2), Runner(model, 2)
    room = [tensor.data_ptr() for tensor in used.tensors()]
    for row in range(2):
        used.prefill(row, [7, 5 + row, 9, 11])
    used.step([1, 2])
    used.clear()
    assert used.reuse_prefix(1, [7, 5, 9, 11]) == 0
    for runner in (used, fresh):
        for row in range(2):
            runner.prefill(row, [3, 4 + row])
    assert torch.equal(used.step([1, 2]).whole, fresh.step([1, 2]).whole)
    assert used.step_bytes(2) == fresh.step_bytes(2)
    assert [tensor.data_ptr() for tensor in used.tensors()] == room
