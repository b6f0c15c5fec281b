"""Virtual GPUs: another placement, the same arithmetic; and a budget that holds at run time."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bigrun import BudgetExceeded, Runner
from bigrun.devices.host_memory import HostMemory

IDS = np.arange(100, 400)[None]
PROMPT = "Tell me a story about a fox."


@pytest.fixture(scope="module")
def spread() -> Iterator[Runner]:
    with Runner(gpus="2x60MB", virtual=True, progress=False) as runner:
        yield runner


def test_blocks_live_on_each_of_the_three_devices(spread: Runner) -> None:
    homes = {p.decode_on for p in spread.plan.placements if p.part.startswith("blocks.")}
    assert homes == {"cuda:0", "cuda:1", "cpu"}


def test_logits_are_equal_to_the_bit(smollm2: Runner, spread: Runner) -> None:
    assert smollm2.plan.prefill_chunk_tokens != spread.plan.prefill_chunk_tokens, "the chunk must not matter either"
    assert np.array_equal(smollm2.logits(IDS), spread.logits(IDS))


def test_tokens_are_the_same_greedy_and_sampled(smollm2: Runner, spread: Runner) -> None:
    samplings: list[dict[str, Any]] = [{}, {"temperature": 0.9, "top_p": 0.95, "seed": 7}]
    for sampling in samplings:
        ours = smollm2.generate(PROMPT, max_new_tokens=24, **sampling)
        theirs = spread.generate(PROMPT, max_new_tokens=24, **sampling)
        assert ours.token_ids == theirs.token_ids
        assert ours.text == theirs.text


def test_every_device_allocates_exactly_what_the_plan_says_and_no_more_than_its_budget(spread: Runner) -> None:
    for device in spread.plan.devices:
        memory = spread.memories[device.name]
        assert memory.peak_bytes == device.used_bytes - device.reserve_bytes
        assert memory.peak_bytes <= device.budget_bytes
        for kind in ("weights", "kv_cache", "workspace"):
            assert memory.by_kind[kind] == getattr(device, f"{kind}_bytes")


def test_a_run_beyond_its_budget_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    original = HostMemory.__init__

    def smaller(self: HostMemory, name: str, budget_bytes: int) -> None:
        original(self, name, budget_bytes // 2 if name == "cuda:1" else budget_bytes)

    monkeypatch.setattr(HostMemory, "__init__", smaller)
    with pytest.raises(BudgetExceeded, match=r"cuda:1: .* needs"):
        Runner(gpus="2x60MB", virtual=True, progress=False)


def test_a_plan_knows_which_devices_are_virtual(spread: Runner) -> None:
    assert [device.virtual for device in spread.plan.devices] == [True, True, False]
    assert replace(spread.plan) == spread.plan
