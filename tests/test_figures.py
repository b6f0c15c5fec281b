"""Figures that commands report, each held to a calculation by hand: with a clock that the test moves, probabilities that are
simple fractions, and models whose bytes can be counted."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bigrun.devices.rates import Rates
from bigrun.devices.rig import Device, Rig
from bigrun.execute.sampling import Sampling
from bigrun.measure import bench, evaluate
from bigrun.planning.options import PlanOptions
from bigrun.planning.plan import Plan
from bigrun.planning.planner import make_plan
from bigrun.session import generation
from bigrun.session.generation import Stats, Stream
from support.checkpoints import llama
from support.commands import run_command
from support.toys import toy

# The toy: hidden, vocabulary, intermediate size and the one head are all 64. Two blocks.
LINEAR = 64 * (192 + 64 + 128 + 64)
BLOCK = LINEAR + 4 * (192 + 64 + 128 + 64) + 2 * 4 * 64  # int8, a float32 scale a row, two norms
TABLE = 64 * 64 + 64 * 2 * 2  # int8, float16 scales of 32 entries
NORM = 4 * 64
TOKEN = 2 * 64 * 2  # a key and a value in float16


class Clock:
    """Seconds that pass only where a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(bench, "time", made)
    monkeypatch.setattr(generation, "time", made)
    return made


# bench


def planned(tied: bool, batch: int, virtual: bool) -> Plan:
    rates = Rates(1e9, 1e9, 1e9, 1e9, 1e9, 1e9, 0.0, math.inf, 1, "")
    cards = (Device("cuda:0", "gpu", 10**9, rates, virtual),) if virtual else ()
    cpu = Device("cpu", "cpu", 100_000 if virtual else 10**9, rates)  # no room for a block beside a GPU
    return make_plan(toy(2, tied), Rig((*cards, cpu)), PlanOptions(context=64, batch=batch))


class BenchedRunner:
    """A model of three sequences whose prompts take 2 s, and steps 0.5, 4 and 0.25 s; before, its first calls take 100 s."""

    def __init__(self, clock: Clock, plan: Plan, tied: bool) -> None:
        self.plan, self.spec, self.clock, self.executor = plan, toy(2, tied), clock, self
        self.load_seconds, self.warm_bytes, self.kernels = 1.5, 400, "imagined kernels"
        self.memories = {"cpu": SimpleNamespace(peak_bytes=55)}
        self.seconds = iter([100.0, 100.0, 2.0, 0.5, 4.0, 0.25])
        self.fed: list[dict[int, int]] = []

    def forward(self, ids: dict[int, Any]) -> None:
        self.fed.append({sequence: len(each) for sequence, each in ids.items()})
        self.clock.now += next(self.seconds)

    def clear(self, sequence: int) -> None:
        self.clock.now += 50

    def __enter__(self) -> "BenchedRunner":
        return self

    def __exit__(self, *_: object) -> None:
        return None


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> None:
    import bigrun.devices.measure as measure

    monkeypatch.setattr(measure, "read_bandwidth", lambda: 1e6)
    monkeypatch.setattr(measure, "host_bytes", lambda: 900)
    monkeypatch.setattr(measure, "watch_memory", lambda: lambda: 777)


def benched(clock: Clock, tied: bool = False, virtual: bool = False) -> tuple[dict[str, Any], BenchedRunner]:
    runner = BenchedRunner(clock, planned(tied, 3, virtual), tied)
    asked = []

    def open_runner(context: int, prompt: int) -> BenchedRunner:
        asked.append((context, prompt))
        return runner

    report = bench.measure(open_runner, 61, 3, 3)
    assert asked == [(64, 61)]
    return report, runner


@pytest.mark.usefixtures("host")
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_the_figures_of_bench_by_hand(clock: Clock, tied: bool) -> None:
    report, runner = benched(clock, tied)
    assert runner.fed[2:] == [dict.fromkeys(range(3), 61), *[dict.fromkeys(range(3), 1)] * 3]
    assert (report["prompt_tokens"], report["new_tokens"], report["batch"]) == (61, 3, 3)
    assert report["prefill_tokens_per_s"] == 3 * 61 / 2
    assert report["decode_tokens_per_s"] == 3 / 0.5, "the median step, of all sequences"
    assert (report["load_seconds"], report["first_token_seconds"]) == (1.5, 3.5)
    # half of the new tokens are there on average; an untied table is looked up and not read, a tied one is the head
    read = 2 * (BLOCK + 3 * (61 + 1) * TOKEN) + TABLE + NORM
    assert report["decode_bytes_per_token"] == pytest.approx(read / 3)
    assert report["decode_bytes_per_s"] == pytest.approx(read / 0.5)
    assert report["roof_bytes_per_s"] == 1e6
    assert (report["peak_host_bytes"], report["host_growth_bytes"]) == (777, 900 - 400)
    assert report["peak_device_bytes"] == {"cpu": 55}
    cpu = runner.plan.device("cpu")
    weights = 2 * BLOCK + NORM + (1 if tied else 2) * TABLE
    assert (cpu.weights_bytes, cpu.kv_cache_bytes) == (weights, 2 * 3 * 64 * TOKEN)
    assert report["planned_device_bytes"] == {"cpu": weights + 2 * 3 * 64 * TOKEN + cpu.workspace_bytes}
    assert report["planned_host_bytes"] == report["planned_device_bytes"]["cpu"]
    assert report["predicted"] == vars(runner.plan.predicted)
    lines = {line.split()[0]: line for line in bench.describe(report).splitlines()[1:]}
    assert f"{3 * 61 / 2:.1f} tokens/s" in lines["prefill"]
    assert " 6.00 tokens/s" in lines["decode"]
    assert f" {read / 0.5 / 1e6:.0%} of the 0.0 GB/s" in lines["reads"]
    assert "500 B grown" in lines["memory"]
    assert "777 B" in lines["memory"]


@pytest.mark.usefixtures("host")
def test_what_virtual_gpus_take_is_taken_of_the_host_without_the_drivers_reserve(clock: Clock) -> None:
    report, runner = benched(clock, virtual=True)
    card, cpu = runner.plan.device("cuda:0"), runner.plan.device("cpu")
    assert card.parts
    assert report["planned_device_bytes"]["cuda:0"] == card.weights_bytes + card.kv_cache_bytes + card.workspace_bytes
    assert report["planned_host_bytes"] == sum(report["planned_device_bytes"][device.name] for device in (card, cpu))


# eval

OURS = ([1 / 2, 1 / 4, 1 / 4], [1 / 8, 1 / 8, 3 / 4])  # of the next token, at even and at odd positions
THEIRS = ([1 / 8, 1 / 8, 3 / 4], [1 / 4, 1 / 4, 1 / 2])


def model_of(probabilities: tuple[list[float], list[float]], ids: list[int], bos: int | None) -> Any:
    def logits(fed: np.ndarray) -> np.ndarray:
        """Shifted by as much as logits can be: only differences mean anything."""
        rows = [np.log(probabilities[i % 2]) + i for i in range(fed.shape[1])]
        return np.array([rows], dtype=np.float32)

    class Answering:
        plan = SimpleNamespace(model="imagined")
        tokenizer = SimpleNamespace(encode=lambda text, add_bos: list(ids), bos_id=bos, adds_bos=bos is not None)

        def __init__(self) -> None:
            self.logits = logits

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: object) -> None:
            return None

    return Answering()


@pytest.mark.parametrize("bos", [None, 2], ids=["no BOS", "a BOS before each window"])
@pytest.mark.parametrize(("length", "window"), [(11, 5), (9, 100), (150, 140)], ids=["a token over", "one", "long"])
def test_the_figures_of_eval_by_hand(tmp_path: Path, bos: int | None, length: int, window: int) -> None:
    (tmp_path / "text").write_text("x")
    ids = [i % 3 for i in range(length)]
    ours, theirs, divergence, same = [], [], [], []
    for start in range(0, length, window):
        fed = ([] if bos is None else [bos]) + ids[start : start + window]
        for i, following in enumerate(fed[1:]):
            mine, other = OURS[i % 2], THEIRS[i % 2]
            ours.append(-math.log(mine[following]))
            theirs.append(-math.log(other[following]))
            divergence.append(sum(q * math.log(q / p) for p, q in zip(mine, other, strict=True)))
            same.append(mine.index(max(mine)) == other.index(max(other)))

    def report(*peer: Any) -> dict[str, Any]:
        return evaluate.perplexity(lambda context: model_of(OURS, ids, bos), tmp_path / "text", window, None, *peer)

    def mean(values: list[Any]) -> float:
        return sum(values) / len(values)

    both = report(lambda context: model_of(THEIRS, ids, bos))
    assert both["tokens"] == len(ours)
    assert both["perplexity"] == pytest.approx(math.exp(mean(ours)), rel=1e-5)
    assert both["perplexity_16bit"] == pytest.approx(math.exp(mean(theirs)), rel=1e-5)
    assert both["mean_kl"] == pytest.approx(mean(divergence), rel=1e-5)
    assert both["top1_agreement"] == pytest.approx(mean(same))
    alone = report()
    assert alone == {name: pytest.approx(both[name]) for name in ("model", "tokens", "perplexity")}
    assert f"the same likeliest token {100 * mean(same):.1f}%" in evaluate.describe(both)
    assert f"mean KL {mean(divergence):.4f}" in evaluate.describe(both)


# Generation.stats


@pytest.mark.parametrize(
    ("limit", "context", "new", "decode", "steps", "ended"),
    [
        (10, 64, 3, 0.5 + 0.25 + 0.125, 3, "stop_token"), (3, 64, 3, 0.5 + 0.25, 2, "max_new_tokens"),
        (1, 64, 1, 0.0, 0, "max_new_tokens"), (10, 5, 2, 0.5, 1, "context"), (2, 5, 2, 0.5, 1, "max_new_tokens"),
    ],
    ids=["until the stop token", "until the limit", "one token", "until the context is full", "both at once"],
)  # fmt: skip
def test_a_generation_counts_its_tokens_and_their_seconds(
    clock: Clock, limit: int, context: int, new: int, decode: float, steps: int, ended: str
) -> None:
    def generate(*_: Any) -> Iterator[int]:
        for token, seconds in ((5, 2.0), (6, 0.5), (7, 0.25), (99, 0.125), (5, 64.0)):
            clock.now += seconds
            yield token

    text = SimpleNamespace(push=lambda token: f"<{token}>", finish=lambda: "!")
    request: Any = SimpleNamespace(
        prompt_ids=[1, 2, 3, 4], token_ids=[], max_new_tokens=limit, sampling=Sampling(), sequence=0
    )
    runner = SimpleNamespace(
        load_seconds=1.5, plan=SimpleNamespace(context_tokens=context), use_threads=lambda: None,
        tokenizer=SimpleNamespace(stream=lambda: text, stop_ids={99}), executor=SimpleNamespace(generate=generate),
        sole_use=lambda: memoryview(b""),  # any context manager
    )  # fmt: skip
    stream = Stream(runner, request)
    assert stream.stats == Stats(4, 0, 1.5, 0.0, 0.0)
    assert (stream.stats.decode_tokens_per_s, stream.stats.prefill_tokens_per_s) == (None, None)
    assert "".join(stream) == "<5><6><7>"[: 3 * new] + "!"
    assert stream.stats == Stats(4, new, 1.5, 2.0, decode, None, ended)
    assert stream.stats.decode_tokens_per_s == (steps / decode if steps else None)
    assert stream.stats.prefill_tokens_per_s == 4 / 2.0


# convert and inspect


def test_the_bytes_of_a_conversion_by_hand(tmp_path: Path) -> None:
    """Two blocks of hidden size 64, queries of 64, keys and values of 32 each, an MLP of 96, a vocabulary of 320."""
    llama(tmp_path / "llama")
    report = json.loads(
        run_command("convert", "--model", tmp_path / "llama", "--out", tmp_path / "int8", "--quiet", "--json").stdout
    )
    rows = 128 + 64 + 192 + 64  # qkv, out, gate and up, down
    linear = 64 * (128 + 64 + 192) + 64 * 128  # the 96 columns of down are padded to 128
    block = linear + 4 * rows + 2 * 4 * 64
    table = 320 * 64 + 320 * 2 * 2
    nbytes = 2 * block + 2 * table + 4 * 64
    assert (report["model"], report["out"]) == ("llama", str(tmp_path / "int8"))
    assert (report["parts"], report["converted_parts"], report["bytes"]) == (5, 5, nbytes)
    again = run_command("convert", "--model", tmp_path / "llama", "--out", tmp_path / "int8", "--quiet", "--json")
    assert json.loads(again.stdout)["converted_parts"] == 0
    inspected = json.loads(run_command("inspect", tmp_path / "llama", "--json").stdout)
    parameters = 2 * (64 * (128 + 64 + 192) + 64 * 96 + 2 * 64) + 2 * 320 * 64 + 64
    assert (inspected["parameters"], inspected["bytes"], inspected["int8_bytes"]) == (
        parameters,
        4 * parameters,
        nbytes,
    )
