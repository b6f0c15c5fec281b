"""Figures that commands report, each held to a calculation by hand: with a clock that the test moves, probabilities that are
simple fractions, and models whose bytes can be counted."""

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from bigrun.devices.rates import Rates
from bigrun.devices.rig import Device, Rig
from bigrun.errors import CallError
from bigrun.execute.sampling import Sampling
from bigrun.loading.open import model_spec, open_model
from bigrun.measure import bench, evaluate, learning
from bigrun.model.resolve import resolve
from bigrun.planning.account import checkpoint
from bigrun.planning.options import PlanOptions
from bigrun.planning.plan import Plan
from bigrun.planning.planner import make_plan
from bigrun.session import generation
from bigrun.session.generation import Stats, Stream
from support.checkpoints import gguf_twin, llama, rewrite, state
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


def planned(tied: bool, batch: int, virtual: bool, context: int = 64) -> Plan:
    rates = Rates(1e9, 1e9, 1e9, 1e9, 1e9, 1e9, 0.0, math.inf, 1, "")
    cards = (Device("cuda:0", "gpu", 10**9, rates, virtual),) if virtual else ()
    cpu = Device("cpu", "cpu", 100_000 if virtual else 10**9, rates)  # no room for a block beside a GPU
    return make_plan(toy(2, tied), Rig((*cards, cpu)), PlanOptions(context=context, batch=batch))


class BenchedRunner:
    """A model of three sequences whose prompts take 2 s, and steps 0.5, 4 and 0.25 s; before, its first calls take 100 s."""

    def __init__(self, clock: Clock, plan: Plan, tied: bool) -> None:
        self.plan, self.spec, self.clock, self.executor = plan, toy(2, tied), clock, self
        self.plan_options = PlanOptions(plan.context_tokens, plan.batch)
        self.load_seconds, self.warm_bytes, self.kernels = 1.5, 400, "imagined kernels"
        self.start_bytes, self.open_bytes, self.parts_seconds, self.wrote_cache = 120, 150, 0.5, False
        self.fetch_seconds = 0.0
        self.parts = {
            part.name: SimpleNamespace(part=part, read_bytes=10, layout=SimpleNamespace(nbytes=5))
            for part in self.spec.parts
        }
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
    sizes = iter([100, 900])
    monkeypatch.setattr(measure, "host_bytes", lambda: next(sizes))
    monkeypatch.setattr(measure, "watch_memory", lambda: lambda: 777)
    monkeypatch.setattr(measure, "freed_bytes", lambda: 30)
    read = iter([1000, 1000 + 2**20])
    monkeypatch.setattr(measure, "disk_read_bytes", lambda: next(read))
    monkeypatch.setattr("bigrun.devices.noise.watch_others", lambda: lambda: 0.05)


def benched(
    clock: Clock, tied: bool = False, virtual: bool = False, lengths: tuple[int, int] = (61, 3), **changes: Any
) -> tuple[dict[str, Any], BenchedRunner]:
    runner = BenchedRunner(clock, planned(tied, 3, virtual, sum(lengths)), tied)
    vars(runner).update(changes)
    asked = []

    def open_runner(context: int, prompt: int) -> BenchedRunner:
        asked.append((context, prompt))
        return runner

    report = bench.measure(open_runner, *lengths, 3)
    assert asked == [(sum(lengths), lengths[0])]
    return report, runner


def test_a_bench_that_fails_leaves_no_thread_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    def refused(context: int, prompt: int) -> Any:
        raise CallError("no such model")

    monkeypatch.setattr("bigrun.devices.measure.read_bandwidth", lambda: 1e6)
    before = threading.active_count()
    with pytest.raises(CallError):
        bench.measure(refused, 4, 4, 1)
    assert threading.active_count() == before


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
    before = (report["interpreter_bytes"], report["files_bytes"], report["kernels_bytes"])
    assert before == (100, 150 - 120, (120 - 100) + (400 - 150)), "which add up to what is there before the model"
    assert (report["mapped_bytes"], report["freed_bytes"]) == (0, 30)
    assert (report["load_parts_seconds"], report["load_disk_bytes"]) == (0.5, 2**20)
    assert report["foreign_cpu_share"] == 0.05
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
    assert "100 B for Python, 30 B for headers and vocabulary, 270 B for kernels" in lines["before"]
    assert "777 B" in lines["before"]


@pytest.mark.usefixtures("host")
def test_what_virtual_gpus_take_is_taken_of_the_host_without_the_drivers_reserve(clock: Clock) -> None:
    report, runner = benched(clock, virtual=True)
    card, cpu = runner.plan.device("cuda:0"), runner.plan.device("cpu")
    assert card.parts
    assert report["planned_device_bytes"]["cuda:0"] == card.weights_bytes + card.kv_cache_bytes + card.workspace_bytes
    assert report["planned_host_bytes"] == sum(report["planned_device_bytes"][device.name] for device in (card, cpu))


@pytest.mark.usefixtures("host")
@pytest.mark.parametrize("lengths", [(97, 3), (128, 2), (3, 3)], ids=["half a page over", "two over", "few"])
def test_what_a_decode_step_reads_is_of_the_tokens_that_are_there_wherever_a_page_ends(
    clock: Clock, lengths: tuple[int, int]
) -> None:
    """A context of 100 tokens takes two pages of 64, of which a step reads what was written."""
    report, _ = benched(clock, lengths=lengths)
    seen = lengths[0] + lengths[1] // 2
    assert report["decode_bytes_per_token"] == pytest.approx((2 * (BLOCK + 3 * seen * TOKEN) + TABLE + NORM) / 3)


@pytest.mark.usefixtures("host")
def test_what_a_hub_took_is_of_the_load_but_not_of_what_was_predicted(clock: Clock) -> None:
    runner = BenchedRunner(clock, planned(False, 3, False), False)
    report, _ = benched(clock, plan=against(runner, **RIGHT), load_seconds=61.5, fetch_seconds=60.0)
    assert (report["load_seconds"], report["fetch_seconds"], report["first_token_seconds"]) == (61.5, 60.0, 63.5)
    assert report["differs"] == []
    assert "0.50 s of it for the weights, 60.00 s for what a hub has" in bench.describe(report)


@pytest.mark.usefixtures("host")
def test_bench_does_without_a_roof_where_too_little_memory_is_available(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bigrun.devices.measure.read_bandwidth", lambda: 0.0)
    report, _ = benched(clock)
    assert report["roof_bytes_per_s"] == 0
    assert "GB/s in decode, too little memory is available to measure" in bench.describe(report)


def against(runner: BenchedRunner, **changes: Any) -> Plan:
    """Its plan with other predictions."""
    assert runner.plan.predicted is not None
    return replace(runner.plan, predicted=replace(runner.plan.predicted, **changes))


RIGHT = {"prefill_tokens_per_s": 3 * 61 / 2, "decode_tokens_per_s": 6.0, "load_seconds": 1.5}


@pytest.mark.usefixtures("host")
@pytest.mark.parametrize(
    ("what", "field", "predicted", "ratio"),
    [
        ("prefill", "prefill_tokens_per_s", 3 * 61 / 2 / 0.84, 0.84),
        ("prefill", "prefill_tokens_per_s", 3 * 61 / 2 / 0.86, None),
        ("decode", "decode_tokens_per_s", 6.0 / 1.16, 1.16),
        ("decode", "decode_tokens_per_s", 6.0 / 1.14, None),
        ("load", "load_seconds", 0.75, 2.0),
        ("load", "load_seconds", 1.4, None),
    ],
)
def test_bench_says_where_a_run_is_more_than_15_per_cent_off(
    clock: Clock, what: str, field: str, predicted: float, ratio: float | None
) -> None:
    runner = BenchedRunner(clock, planned(False, 3, False), False)
    report, _ = benched(clock, plan=against(runner, **RIGHT | {field: predicted}))
    text = bench.describe(report)
    if ratio is None:
        assert report["differs"] == []
        assert "differs" not in text
        return
    (one,) = report["differs"]
    assert (one["what"], one["measured"], one["predicted"]) == (what, RIGHT[field], predicted)
    assert one["ratio"] == pytest.approx(ratio)
    assert f"differs   {what}: {ratio:.2f} of what was predicted" in text
    assert "--learn keeps what this run took" in text


@pytest.mark.usefixtures("host")
@pytest.mark.parametrize(
    ("changes", "reasons"),
    [
        ({}, ["no reason is known", "no reason is known", "no reason is known"]),
        ({"foreign": 0.4}, ["used 40% of the CPU during the run"] * 2 + ["used 40% of the CPU during the load"]),
        ({"doubt": "not measured"}, ["figures were not measured"] * 2 + ["no reason is known"]),
        ({"doubt": "measured in a busy minute"}, ["in a busy minute"] * 2 + ["no reason is known"]),
        ({"virtual": True}, ["virtual GPUs"] * 2 + ["no reason is known"]),
        ({"compiled": False}, ["no reason is known"] * 2 + ["kernels were compiled in it"]),
        ({"wrote_cache": True}, ["no reason is known"] * 2 + ["an int8 cache was written"]),
        ({"mapped": True}, ["no reason is known"] * 2 + ["came from the int8 cache"]),
        ({"disk": 0}, ["no reason is known"] * 2 + ["its files were in memory already"]),
    ],
    ids=["none", "others", "assumed", "busy", "virtual", "compiled", "cache written", "cache read", "page cache"],
)
def test_bench_says_the_reasons_that_it_can_know(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], reasons: list[str]
) -> None:
    monkeypatch.setattr("bigrun_kernels.cpu.compiled", lambda: changes.get("compiled", True))
    if "foreign" in changes:
        monkeypatch.setattr("bigrun.devices.noise.watch_others", lambda: lambda: changes["foreign"])
    if "disk" in changes:
        monkeypatch.setattr("bigrun.devices.measure.disk_read_bytes", lambda: changes["disk"])
    runner = BenchedRunner(clock, planned(False, 3, changes.get("virtual", False)), False)
    if changes.get("mapped"):
        runner.parts = {name: SimpleNamespace(**vars(part) | {"read_bytes": 0}) for name, part in runner.parts.items()}
    wrong = {"prefill_tokens_per_s": 1.0, "decode_tokens_per_s": 1.0, "load_seconds": 15.0}
    report, _ = benched(
        clock, plan=against(runner, **wrong, doubt=changes.get("doubt", "")), parts=runner.parts,
        wrote_cache=changes.get("wrote_cache", False),
    )  # fmt: skip
    lines = [line for line in bench.describe(report).splitlines() if line.startswith("  differs")]
    assert [each["what"] for each in report["differs"]] == ["prefill", "decode", "load"]
    for line, reason in zip(lines, reasons, strict=True):
        assert reason in line, line
        assert line.count(";") == 0, "one reason"


@pytest.mark.usefixtures("host")
def test_bench_says_what_is_mapped_and_whose_the_memory_beside_the_plan_is(clock: Clock) -> None:
    _, runner = benched(clock)
    parts = {name: SimpleNamespace(**vars(part) | {"read_bytes": 0}) for name, part in runner.parts.items()}
    mapped = sum(5 for part in runner.spec.parts if part.tensors)
    text = {"host_growth_bytes": 2000, "mapped_bytes": mapped, "planned_host_bytes": 1500, "freed_bytes": 300}
    assert learning.mapped_bytes(SimpleNamespace(executor=SimpleNamespace(parts=parts))) == mapped == 25
    assert bench._memory(text) == (
        "2.00 KB grown and 25 B mapped from the int8 conversion, 1.50 KB planned; 525 B more, of which 300 B are freed and "
        "kept by the C library"
    )
    assert bench._memory(text | {"mapped_bytes": 0, "host_growth_bytes": 1520}) == "1.52 KB grown, 1.50 KB planned"


# What a checkpoint's files take to load, by their headers


def test_the_bytes_and_the_form_of_local_files_are_those_of_their_headers(tmp_path: Path) -> None:
    """The model of the conversion below: 320 rows of vocabulary, hidden size 64, an MLP of 96; but four blocks."""
    linears = 4 * (64 * (128 + 64 + 192) + 64 * 96)
    vectors = 4 * 2 * 64 + 64
    tables = 2 * 320 * 64
    rows = 4 * (64 + 32 + 32 + 64 + 96 + 96 + 64)
    for dtype in ("float32", "bfloat16"):
        llama(tmp_path / dtype, dtype=dtype, layers=4, max_shard_size="100KB")
        held = model_spec(resolve(str(tmp_path / dtype)))
        size, form = {"float32": (4, "float32"), "bfloat16": (2, "16bit")}[dtype]
        assert (held.checkpoint_bytes, held.checkpoint_form) == (size * (linears + vectors + tables), form)
    tensors = state(tmp_path / "bfloat16")
    for name in [name for name in tensors if "proj" in name]:
        tensors[f"{name}_scale"] = torch.ones(len(tensors[name]), 1)
        tensors[name] = tensors[name].to(torch.float8_e4m3fn)
    rewrite(tmp_path / "bfloat16", tensors)
    held = model_spec(resolve(str(tmp_path / "bfloat16")))
    assert (held.checkpoint_bytes, held.checkpoint_form) == (linears + 4 * rows + 2 * (vectors + tables), "float8")
    (tmp_path / "torch").mkdir()
    shutil.copy(tmp_path / "float32" / "config.json", tmp_path / "torch")
    torch.save(state(tmp_path / "float32"), tmp_path / "torch" / "pytorch_model.bin")
    held = model_spec(resolve(str(tmp_path / "torch")))
    assert (held.checkpoint_bytes, held.checkpoint_form) == (4 * (linears + vectors + tables), "float32")
    gguf_twin(tmp_path / "float32", tmp_path / "quantised.gguf", "Q8_0")
    held = model_spec(resolve(str(tmp_path / "quantised.gguf")))
    blocks = (linears + tables) // 32  # of 32 entries, with a float16 scale
    assert (held.checkpoint_bytes, held.checkpoint_form) == (34 * blocks + 4 * vectors, "gguf")
    done = run_command("convert", "--model", tmp_path / "float32", "--out", tmp_path / "int8", "--quiet", "--json")
    held = model_spec(resolve(str(tmp_path / "int8")))
    assert (held.checkpoint_bytes, held.checkpoint_form) == (json.loads(done.stdout)["bytes"], "int8")
    made = json.loads(
        run_command("plan", "--model", tmp_path / "int8", "--gpus", "none", "--cpu", "1GB", "--json").stdout
    )
    assert made["predicted"]["load_seconds"] == pytest.approx(1.5 + held.checkpoint_bytes / 2e9), "as the disk reads"
    run = open_model(resolve(str(tmp_path / "int8")))[1]
    assert (run.checkpoint_bytes, run.checkpoint_form) == (held.checkpoint_bytes, held.checkpoint_form)


@pytest.mark.parametrize("damage", ["no weights", "a cut header", "a shard is missing"])
def test_a_plan_needs_no_weights_and_counts_the_parameters_then(tmp_path: Path, damage: str) -> None:
    llama(tmp_path, max_shard_size="100KB" if damage == "a shard is missing" else "1GB")
    for file in sorted(tmp_path.glob("*.safetensors"))[:1]:
        if damage == "a cut header":
            file.write_bytes(file.read_bytes()[:50])
        else:
            file.unlink()
    held = model_spec(resolve(str(tmp_path)))
    assert (held.checkpoint_bytes, held.checkpoint_form) == (0, "")
    assert checkpoint(held) == (4 * held.parameters, "float32")


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
        prompt_ids=[1, 2, 3, 4],
        token_ids=[],
        max_new_tokens=limit,
        sampling=Sampling(),
        noise_stream=0,
        stop=(),
        shown=(),
    )
    runner = SimpleNamespace(
        load_seconds=1.5, plan=SimpleNamespace(context_tokens=context), use_threads=lambda: None,
        tokenizer=SimpleNamespace(stream=lambda _: text, stop_ids={99}), check_open=lambda: None,
        executor=SimpleNamespace(generate=generate, reusable_prefix=lambda *_: 1), live_streams=set(),
        sole_use=lambda: memoryview(b""),  # any context manager
    )  # fmt: skip
    stream = Stream(runner, request)
    assert stream.stats == Stats(4, 0, 1.5, 0.0, 0.0)
    assert (stream.stats.decode_tokens_per_s, stream.stats.prefill_tokens_per_s) == (None, None)
    assert "".join(stream) == "<5><6><7>"[: 3 * new] + "!"
    assert stream.stats == Stats(4, new, 1.5, 2.0, decode, None, ended, 1)
    assert stream.stats.decode_tokens_per_s == (steps / decode if steps else None)
    assert stream.stats.prefill_tokens_per_s == 3 / 2.0, "one was there"


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
