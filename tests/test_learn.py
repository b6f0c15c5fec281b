"""Learning a host's rates from runs: rates that were known beforehand are found again, and predict a model never seen."""

import contextlib
import json
import math
import random
import threading
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import bigrun.measure.learning
from bigrun import plan
from bigrun.devices.host_file import Host, machine, read, write
from bigrun.devices.rates import FURTHEST, Rates, cpu_rates, low_rates
from bigrun.errors import CallError
from bigrun.loading.open import model_spec
from bigrun.measure.learning import calibrate_from_run, calibrated, host_to_calibrate, with_load
from bigrun.model.resolve import resolve
from bigrun.model.spec import ModelSpec
from bigrun.model.storage import Storage
from bigrun.planning.cost import Phase, Work, decode_phase, prefill_phase
from bigrun.planning.learn import LEARNED, MOST_RUNS, Run, fit, from_data, keep_runs, observe, to_data
from bigrun.planning.ledger import Ledger
from bigrun.planning.options import PlanOptions
from support.commands import run_command
from support.toys import toy

ROOFS = (40e9, 3e11, 5e10)
START = cpu_rates(*ROOFS, "measured")
SEEN, UNSEEN = ("smollm2-135m", "llama-3.2-1b"), "llama-3.2-3b"


@cache
def spec(model: str) -> ModelSpec:
    return model_spec(resolve(model))


@cache
def steps(model: str, weights: str = "int8") -> tuple[Run, ...]:
    """A decode step and a prompt at three contexts, of one sequence and of eight; they took a second each."""
    observations = []
    for context in (64, 512, 2000):
        for batch in (1, 8):
            ledger = Ledger(spec(model), PlanOptions(context, batch, Storage(weights)))
            for phase in (decode_phase(batch, context), prefill_phase(context * 3 // 4, 64)):
                observations.append(observe(f"{model} {phase.name} {context} {batch}", ledger, phase, 1.0))
    return tuple(observations)


def runs(rates: Rates, *models: str, weights: str = "int8", noise: float = 0.0, seed: int = 0) -> list[Run]:
    """What a host of these rates would have taken, give or take `noise` of it."""
    wrong = random.Random(seed)
    return [
        replace(run, seconds=run.predicted(rates) * (1 + noise * wrong.choice((-1, 1))))
        for model in models
        for run in steps(model, weights)
    ]


def host_of(seed: int) -> Rates:
    """A host that is up to twice as fast or slow as was assumed, in each way on its own."""
    by = random.Random(seed)
    return replace(START, **{name: getattr(START, name) * 2 ** by.uniform(-1, 1) for name in LEARNED})


def worst(rates: Rates, true: Rates, model: str = UNSEEN, weights: str = "int8") -> float:
    """The largest error of a prediction of any step of a model."""
    return max(abs(run.predicted(rates) / run.seconds - 1) for run in runs(true, model, weights=weights))


@pytest.mark.parametrize("seed", range(4))
def test_what_two_models_took_predicts_a_third_within_three_per_cent(seed: int) -> None:
    true = host_of(seed)
    learned = fit(runs(true, *SEEN), START)
    assert worst(START, true) > 0.1, "there was something to learn"
    assert worst(learned, true) < 0.03
    for name in ("read", "int8", "block"):  # which these runs have much of
        assert getattr(learned, name) == pytest.approx(getattr(true, name), rel=0.1)


@pytest.mark.parametrize("seed", range(4))
def test_runs_that_are_ten_per_cent_off_predict_it_within_fifteen(seed: int) -> None:
    true = host_of(seed)
    assert worst(fit(runs(true, *SEEN, noise=0.1, seed=seed), START), true) < 0.15


@pytest.mark.parametrize("seed", range(2))
def test_one_run_that_was_disturbed_does_not_outweigh_the_others(seed: int) -> None:
    true = host_of(seed)
    observed = runs(true, *SEEN)
    observed[3 * seed] = replace(observed[3 * seed], seconds=5 * observed[3 * seed].seconds)
    assert worst(fit(observed, START), true) < 0.05


def test_the_same_runs_give_the_same_rates_and_the_source_says_how_many() -> None:
    observed = runs(host_of(1), *SEEN, noise=0.1)
    learned = fit(observed, START)
    assert learned == fit(list(observed), replace(START)) == fit(from_data(to_data(observed)), START)
    assert learned.source == f"learned from {len(observed)} runs"


def test_what_is_not_learned_is_left_as_it_was_measured() -> None:
    learned = fit(runs(host_of(2), *SEEN), START)
    assert (learned.wide, learned.link) == (START.wide, START.link), "no run had wide weights"


def test_without_runs_the_rates_are_those_one_starts_from() -> None:
    assert fit([], START) is START


def test_runs_as_predicted_change_nothing() -> None:
    learned = fit(runs(START, *SEEN), START)
    assert {name: getattr(learned, name) for name in LEARNED} == {name: getattr(START, name) for name in LEARNED}


def test_one_run_is_learned_from_and_stays_near_what_was_measured() -> None:
    """A decode step that took twice as long as predicted: its own prediction comes near, and no rate leaves for nowhere."""
    (first, *_) = runs(START, "llama-3.2-1b")
    learned = fit([replace(first, seconds=2 * first.seconds)], START)
    assert first.predicted(learned) == pytest.approx(2 * first.seconds, rel=0.05)
    assert all(0.3 < getattr(learned, name) / getattr(START, name) < 3 for name in LEARNED)


def test_runs_of_16_bit_weights_teach_their_own_rate_and_not_that_of_int8() -> None:
    true = replace(START, wide=START.wide / 2)
    learned = fit(runs(true, "smollm2-135m", weights="16bit")[:6], START)
    assert learned.wide == pytest.approx(true.wide, rel=0.05)
    assert worst(learned, true, weights="16bit") < 0.03
    assert worst(learned, true, weights="int8") < 0.03


def bench_runs(model: ModelSpec, prompt: int, new: int) -> list[Run]:
    """What `bench --learn` observes of a model: a prompt and a decode step."""
    ledger = Ledger(model, PlanOptions(prompt + new, 1))
    phases = Phase("prefill", 1, prompt, (prompt + 1) / 2, 1), Phase("decode", 1, 1, prompt + new // 2, 1)
    return [observe(phase.name, ledger, phase, 1.0) for phase in phases]


SLOWER = [(1, 1), (3, 1), (1, 3), (10, 10), (1, 10), (10, 1), (50, 50), (0.2, 0.2)]


@pytest.mark.parametrize("slower", SLOWER, ids=str)
@pytest.mark.parametrize("lengths", [(128, 32), (16, 4)], ids=str)
@pytest.mark.parametrize("model", ["a toy", "smollm2-135m"])
def test_what_a_small_model_took_does_not_spoil_the_prediction_of_a_large_one(
    model: str, lengths: tuple[int, int], slower: tuple[float, float]
) -> None:
    """Whatever a prompt and a step of a small model took of what was predicted: a toy's, of which little is weights and
    arithmetic, change a 70B by no more than the blocks' fixed cost; the demo's by no more than rates may be off the roofs."""
    small = toy(2) if model == "a toy" else spec(model)
    observed = bench_runs(small, *lengths)
    took = [replace(run, seconds=run.predicted(START) * by) for run, by in zip(observed, slower, strict=True)]
    learned = fit(took, START)
    least, most = FURTHEST
    for run in bench_runs(spec("llama-3.1-70b"), 1024, 512):
        apart = run.predicted(learned) / run.predicted(START)
        if model == "a toy":
            assert 0.95 < apart < 1.15
        else:
            assert 0.9 / most < apart < 1.4 / least  # overlap and blocks beside the rates


@pytest.mark.parametrize("rate", ["read", "int8", "block"])
def test_a_host_file_of_rates_that_no_run_can_show_is_read_as_near_to_its_roofs_as_they_can_be(rate: str) -> None:
    far = replace(START, **{rate: getattr(START, rate) * 1e-3, "source": "learned from 2 runs"})
    least = {"block": 0.1}.get(rate, FURTHEST[0])
    assert getattr(replace(HOST, learned=far).rates(), rate) == pytest.approx(least * getattr(START, rate))
    assert replace(HOST, learned=replace(far, **{rate: getattr(START, rate)})).rates().source == "learned from 2 runs"


@settings(derandomize=True, database=None, deadline=None, max_examples=4, suppress_health_check=list(HealthCheck))
@given(st.lists(st.floats(0.25, 4), min_size=len(LEARNED), max_size=len(LEARNED)))
def test_learning_never_makes_the_runs_it_learned_from_worse(factors: list[float]) -> None:
    changes = {name: getattr(START, name) * factor for name, factor in zip(LEARNED, factors, strict=True)}
    observed = runs(replace(START, **changes), "smollm2-135m")[::3]

    def off(rates: Rates) -> float:
        return sum(abs(math.log(run.predicted(rates) / run.seconds)) for run in observed) / len(observed)

    assert off(fit(observed, START)) <= off(START) + 0.03, "but for what may as well be noise"


def test_a_run_is_made_of_what_the_planner_predicts_for_the_same_step() -> None:
    made = plan("llama-3.2-1b", gpus="none", cpu="64GB", context=1000, batch=3, prompt_tokens=700)
    ledger = Ledger(spec("llama-3.2-1b"), PlanOptions(1000, 3, prompt=700))
    rates = low_rates(machine()[1])
    assert made.predicted is not None
    decode = observe("", ledger, decode_phase(3, 1000), 1.0).predicted(rates)
    assert 3 / decode == pytest.approx(made.predicted.decode_tokens_per_s)
    prefill = observe("", ledger, prefill_phase(700, made.prefill_chunk_tokens), 1.0).predicted(rates)
    assert 700 / prefill == pytest.approx(made.predicted.prefill_tokens_per_s, rel=1e-3)


# In and out of a host file.


HOST = Host(*machine(), "AVX2", "2025-01-01", *ROOFS)


def simple(number: int) -> Run:
    """A run that nothing else is like, quickly fitted."""
    return Run(f"run {number}", ((number + 1, Work(weights=1e9)),), 0.05 * (number + 1))


def test_runs_come_back_from_json_as_they_went_in() -> None:
    observed = runs(host_of(3), *SEEN, "mixtral-8x7b", noise=0.1)
    assert from_data(to_data(observed)) == tuple(observed)
    assert from_data(json.loads(json.dumps(to_data(observed)))) == tuple(observed)
    assert from_data(()) == () == to_data([])


@pytest.mark.parametrize(
    "wrong",
    [
        5,
        "run",
        {},
        {"name": "x"},
        {"name": "x", "seconds": 1.0, "parts": 5},
        {"name": "x", "seconds": 1.0, "parts": []},
        {"name": "x", "seconds": 1.0, "parts": [[1, {}]]},
        {"name": "x", "seconds": 1.0, "parts": [[0, {"weights": 1}]]},
        {"name": "x", "seconds": 1.0, "parts": [[1, {"nonsense": 1}]]},
        {"name": "x", "seconds": 1.0, "parts": [[1, {"weights": "1"}]]},
        {"name": "x", "seconds": 1.0, "parts": [[1, {"weights": -1, "cache": 5}]]},
        {"name": "x", "seconds": 1.0, "parts": [[1, {"weights": math.nan}]]},
        {"name": "x", "seconds": 0.0, "parts": [[1, {"weights": 1}]]},
        {"name": "x", "seconds": -1.0, "parts": [[1, {"weights": 1}]]},
        {"name": "x", "seconds": math.nan, "parts": [[1, {"weights": 1}]]},
        {"name": "x", "seconds": math.inf, "parts": [[1, {"weights": 1}]]},
        {"name": "x", "seconds": "soon", "parts": [[1, {"weights": 1}]]},
    ],
    ids=lambda wrong: json.dumps(wrong)[:60],
)
def test_runs_that_are_none_are_not_learned_from(wrong: Any) -> None:
    with pytest.raises((ValueError, TypeError, KeyError, AttributeError)):
        from_data([wrong])
    with pytest.raises(CallError, match="--learn: somewhere: its runs are damaged"):
        calibrated(replace(HOST, runs=(wrong,), where="somewhere"), runs(START, "smollm2-135m")[:1])


def test_a_host_keeps_the_latest_runs_and_learns_from_those_it_keeps() -> None:
    old, new = [simple(i) for i in range(70)], [simple(i) for i in range(100, 110)]
    host = calibrated(calibrated(HOST, old), new)
    assert len(host.runs) == MOST_RUNS
    kept = from_data(host.runs)
    assert kept[-len(new) :] == tuple(new)
    assert kept[: -len(new)] == tuple(old[-(MOST_RUNS - len(new)) :])
    assert host.learned == fit(kept, START)
    assert host.rates() == host.learned


def test_the_roofs_stay_as_measured() -> None:
    host = calibrated(HOST, [simple(1)])
    assert (host.read_bytes_per_s, host.int8_products_per_s, host.wide_products_per_s) == ROOFS


def test_a_full_host_file_is_read_back_and_used(tmp_path: Path) -> None:
    observed = (runs(START, *SEEN, "mixtral-8x7b", "deepseek-v2-lite") * 2)[:MOST_RUNS]
    host = replace(calibrated(HOST, observed[:2]), runs=to_data(observed))
    assert len(host.runs) == MOST_RUNS
    write(host, tmp_path / "host.json")
    assert read(tmp_path / "host.json") == replace(host, where=str(tmp_path / "host.json"))


def test_a_later_plan_predicts_with_what_was_learned(tmp_path: Path) -> None:
    true, file = host_of(5), tmp_path / "host.json"
    write(calibrated(HOST, runs(true, *SEEN)), file)
    made = plan(UNSEEN, gpus="none", cpu="64GB", context=512, batch=8, host=file)
    before = plan(UNSEEN, gpus="none", cpu="64GB", context=512, batch=8)
    step = next(run for run in runs(true, UNSEEN) if run.name == f"{UNSEEN} decode 512 8")
    assert made.predicted is not None
    assert before.predicted is not None
    assert 8 / made.predicted.decode_tokens_per_s == pytest.approx(step.seconds, rel=0.03)
    assert 8 / before.predicted.decode_tokens_per_s != pytest.approx(step.seconds, rel=0.03)
    (learned,) = made.predicted.learned
    assert f"learned from {len(from_data(read(file).runs))} runs of this host" in learned
    assert before.predicted.measured == before.predicted.learned == ()


def stub(model: str, batch: int, chunk: int, kind: str = "cpu") -> Any:
    """As much of a Runner as `calibrate_from_run` looks at."""
    device = SimpleNamespace(kind=kind, parts=("blocks.0",), virtual=False)
    made = SimpleNamespace(model=model, batch=batch, prefill_chunk_tokens=chunk, devices=[device])
    return loaded(2.0, 0.5, 10**9, 0, plan=made, spec=spec(model), plan_options=PlanOptions(512, batch))


def loaded(seconds: float, parts_seconds: float, read: int, mapped: int, form: str = "", **more: Any) -> Any:
    """As much of a Runner as `with_load` looks at: a load of a part that was converted, and of one that was mapped."""
    parts = {
        name: SimpleNamespace(
            part=SimpleNamespace(tensors=("x",)), read_bytes=read_bytes, layout=SimpleNamespace(nbytes=nbytes)
        )
        for name, read_bytes, nbytes in (("embed", read, read // 2), ("blocks.0", 0, mapped))
        if read_bytes or nbytes
    }
    parts["head"] = SimpleNamespace(part=SimpleNamespace(tensors=()), read_bytes=0, layout=SimpleNamespace(nbytes=0))
    whole = replace(spec("smollm2-135m"), checkpoint_form=form, checkpoint_bytes=max(read, mapped, 1))
    more = {"fetch_seconds": 0.0, "wrote_cache": False} | more
    return SimpleNamespace(
        **{"spec": whole, "load_seconds": seconds, "parts_seconds": parts_seconds} | more,
        executor=SimpleNamespace(parts=parts),
    )


@pytest.mark.parametrize(
    ("load", "start", "rates"),
    [
        (loaded(3.0, 2.0, 10**9, 0, "16bit"), 1.0, {"16bit": 0.5e9}),
        (loaded(3.0, 2.5, 4 * 10**9, 0, "gguf"), 0.5, {"gguf": 1.6e9}),
        (loaded(3.0, 1.0, 0, 2 * 10**9, "int8"), 2.0, {"int8": 2e9}),
        (loaded(3.0, 1.0, 0, 2 * 10**9, "16bit"), 2.0, {"int8": 2e9}),
        (loaded(2.5, 1.5, 92 * 10**6, 0, "gguf"), 1.0, {}),
        (loaded(2.5, 1.5, 10**9 - 1, 0, "16bit"), 1.0, {}),
        (loaded(3.0, 2.0, 10**9, 10**9, "16bit"), 1.0, {}),
        (loaded(3.0, 2.0, 10**9, 0, "16bit", wrote_cache=True), 1.0, {}),
        (loaded(50.0, 2.0, 2 * 10**9, 0, "float8"), 0.0, {"float8": 1e9}),
        (loaded(9.0, 2.0, 10**9, 0, "16bit", fetch_seconds=6.0), 1.0, {"16bit": 0.5e9}),
        (loaded(99.0, 2.0, 10**9, 0, "16bit", fetch_seconds=96.0), 1.0, {"16bit": 0.5e9}),
    ],
    ids=[
        "16 bits", "quantised", "a conversion", "a checkpoint whose cache has it all", "the demo", "a byte too few",
        "half from a cache", "a cache was written", "kernels were compiled", "a short download", "a long download",
    ],
)  # fmt: skip
def test_a_load_teaches_its_fixed_seconds_apart_from_a_rate_that_it_is_long_enough_to_show(
    load: Any, start: float, rates: dict[str, float]
) -> None:
    host = with_load(HOST, load)
    assert (host.start_seconds, dict(host.loads)) == (start, rates)


def test_the_quickest_load_of_each_form_is_kept_and_the_least_of_the_fixed_seconds() -> None:
    host = replace(HOST, start_seconds=0.9, loads=(("16bit", 0.7e9), ("int8", 3e9)))
    slower, faster = loaded(3.0, 2.0, 10**9, 0, "16bit"), loaded(1.5, 1.0, 10**9, 0, "16bit")
    assert with_load(host, slower) == host
    assert with_load(host, faster) == replace(host, start_seconds=0.5, loads=(("16bit", 1e9), ("int8", 3e9)))


def test_a_small_model_does_not_say_how_long_a_large_one_loads(tmp_path: Path) -> None:
    """The demo's 92 MB of a quantised file take 1.5 s; once, a 70B was then said to load in 39 minutes."""
    write(HOST, tmp_path / "before.json")
    write(with_load(HOST, loaded(2.5, 1.5, 92 * 10**6, 0, "gguf")), tmp_path / "after.json")
    made = [
        plan("llama-3.1-70b", gpus="none", cpu="1TB", host=tmp_path / name).predicted
        for name in ("before.json", "after.json")
    ]
    assert made[0] is not None
    assert made[1] is not None
    nbytes = 2 * spec("llama-3.1-70b").parameters
    assert made[0].load_seconds == pytest.approx(1.5 + nbytes / 1e9)
    assert made[1].load_seconds == pytest.approx(1.0 + nbytes / 1e9)


@pytest.mark.parametrize(
    ("batch", "prompt", "chunk", "times"),
    [(1, 100, 32, 4), (1, 100, 512, 1), (8, 32, 256, 1), (8, 32, 512, 1), (3, 100, 128, 3), (40, 1, 32, 1)],
    ids=["chunks", "one chunk", "a full chunk of all", "a chunk of all", "chunks across sequences", "a wide batch"],
)
def test_prompts_of_several_sequences_are_learned_in_the_steps_that_they_share(
    batch: int, prompt: int, chunk: int, times: int, tmp_path: Path
) -> None:
    """The executor fills a step with tokens of whatever sequence: weights are read once a step, not once a sequence."""
    write(HOST, tmp_path / "host.json")
    calibrate_from_run(tmp_path / "host.json", stub("smollm2-135m", batch, chunk), 0.7, 0.1, prompt, prompt + 16)
    host = read(tmp_path / "host.json")
    prefill, decode = from_data(host.runs)
    assert (prefill.seconds, decode.seconds) == (0.7, 0.1)
    assert (host.start_seconds, dict(host.loads)) == (1.5, {"gguf": 2e9})
    ledger = Ledger(spec("smollm2-135m"), PlanOptions(512, batch))
    blocks = sum(ledger.weights(f"blocks.{i}") for i in range(30))
    head = ledger.weights("embed")
    assert sum(count * work.weights for count, work in prefill.parts) == times * blocks + head
    assert sum(count * work.weights for count, work in decode.parts) == blocks + head
    linear = sum(
        t.count for i in range(30) for t in spec("smollm2-135m").part(f"blocks.{i}").tensors if t.role == "linear"
    )
    products = sum(count * work.products for count, work in prefill.parts)
    assert products == pytest.approx(batch * prompt * linear + batch * 49152 * 576)


def test_two_that_learn_at_once_keep_both_their_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, both = tmp_path / "host.json", threading.Barrier(2)
    write(HOST, file)

    def slow(*what: Any) -> Host:
        """Both have read the file before either writes it, if they can."""
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(0.5)
        return calibrated(*what)

    monkeypatch.setattr(bigrun.measure.learning, "calibrated", slow)
    names = ("smollm2-135m", "llama-3.2-1b")
    threads = [
        threading.Thread(target=calibrate_from_run, args=(file, stub(name, 1, 512), 0.7, 0.1, 100, 116))
        for name in names
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(run.name.partition(":")[0] for run in from_data(read(file).runs)) == sorted([*names, *names])


def test_a_run_of_a_busy_minute_is_kept_and_counts_only_where_there_are_no_others(tmp_path: Path) -> None:
    file, runner = tmp_path / "host.json", stub("llama-3.2-1b", 1, 512)
    write(HOST, file)
    calibrate_from_run(file, runner, 30.0, 3.0, 100, 116, "other processes used 60% of the CPU")
    busy = read(file)
    assert (busy.start_seconds, busy.loads) == (0.0, ()), "its load was disturbed too"
    assert busy.busy_roof == "other processes used 60% of the CPU"
    assert busy.says.endswith("measured in a busy minute: other processes used 60% of the CPU")
    assert busy.learned is not None
    assert busy.learned.read < START.read
    calibrate_from_run(file, runner, 0.7, 0.05, 100, 116)
    both = read(file)
    assert both.busy_roof == ""
    quiet = [run for run in from_data(both.runs) if not run.busy]
    assert (len(both.runs), len(quiet)) == (4, 2)
    assert both.learned == fit(quiet, START)
    assert both.learned.source == "learned from 2 runs"


def test_of_too_many_runs_those_of_busy_minutes_go_first() -> None:
    quiet = [simple(i) for i in range(60)]
    busy = [replace(simple(100 + i), busy="it was") for i in range(10)]
    assert keep_runs([*busy, *quiet]) == (*busy[-4:], *quiet)
    assert keep_runs([*quiet[:5], *busy, *quiet[5:]]) == (*quiet[:5], *busy[-4:], *quiet[5:])
    assert keep_runs([*quiet, *quiet]) == tuple([*quiet, *quiet][-MOST_RUNS:])


def test_a_run_on_a_real_gpu_teaches_the_cpu_nothing(tmp_path: Path) -> None:
    write(HOST, tmp_path / "host.json")
    with pytest.raises(CallError, match="--learn"):
        calibrate_from_run(tmp_path / "host.json", stub("smollm2-135m", 1, 32, "gpu"), 0.7, 0.1, 32, 48)
    assert read(tmp_path / "host.json").runs == ()


# The command.


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Measuring a host takes seconds: it is counted, and answered with HOST."""
    asked: list[Path] = []

    def measure(path: Path) -> Host:
        asked.append(path)
        return replace(HOST, where=str(path))

    monkeypatch.setattr(bigrun.measure.learning, "measure_host", measure)
    return asked


def bench(model: Path | str, *arguments: str) -> Result:
    sizes = ("--gpus", "none", "--cpu", "1GB", "--prompt-tokens", "16", "--new-tokens", "4")
    return run_command("bench", "--model", str(model), "--quiet", "--learn", *sizes, *arguments)


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """bench measures how fast this host reads, which is not what is tested here."""
    import bigrun.devices.measure
    import bigrun.devices.noise

    monkeypatch.setattr(bigrun.devices.measure, "read_bandwidth", lambda: 1e10)
    monkeypatch.setattr(bigrun.devices.noise, "watch_others", lambda: lambda: 0.0)  # whatever runs beside the tests


@pytest.mark.usefixtures("unread")
def test_bench_learns_two_runs_each_time_and_later_plans_use_them(
    tiny: Path, tmp_path: Path, unmeasured: list[Path]
) -> None:
    file = tmp_path / "new" / "host.json"
    first = bench(tiny, "--host", str(file), "--json")
    assert first.exit_code == 0, first.output
    assert unmeasured == [file]
    report, host = json.loads(first.stdout), read(file)
    prefill, decode = from_data(host.runs)
    assert prefill.seconds == pytest.approx(16 / report["prefill_tokens_per_s"])
    assert decode.seconds == pytest.approx(1 / report["decode_tokens_per_s"])
    assert (prefill.name[-12:], decode.name[-12:]) == ("prompt of 16", "decode at 18")
    assert host.learned is not None
    again = bench(tiny, "--host", str(file), "--json")
    assert (again.exit_code, len(unmeasured)) == (0, 1)
    assert read(file).runs[:2] == host.runs
    assert len(read(file).runs) == 4
    made, plain = (plan(str(tiny), gpus="none", cpu="1GB", context=20, host=host) for host in (file, None))
    assert made.predicted is not None
    assert plain.predicted is not None
    assert any("learned from 4 runs" in line and str(file) in line for line in made.predicted.learned)
    assert made.predicted.decode_tokens_per_s != plain.predicted.decode_tokens_per_s
    took = report["decode_tokens_per_s"], json.loads(again.stdout)["decode_tokens_per_s"]
    assert 0.3 * min(took) < made.predicted.decode_tokens_per_s < 3 * max(took), "it took what it is predicted to take"


def test_learning_needs_a_file_to_keep_it_in(tiny: Path, unmeasured: list[Path]) -> None:
    for none in ("none", "NONE"):
        result = bench(tiny, "--host", none)
        assert (result.exit_code, result.stdout, unmeasured) == (2, "", [])
        assert "--learn" in result.stderr
        assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "other", [{"cpu": "Another CPU @ 9 GHz"}, {"cores": machine()[1] + 1}], ids=["another cpu", "other cores"]
)
def test_the_file_of_another_machine_is_not_added_to(
    other: dict[str, Any], tiny: Path, tmp_path: Path, unmeasured: list[Path]
) -> None:
    write(replace(HOST, **other), tmp_path / "host.json")
    before = (tmp_path / "host.json").read_bytes()
    result = bench(tiny, "--host", str(tmp_path / "host.json"))
    assert (result.exit_code, result.stdout, unmeasured) == (2, "", [])
    assert "another machine" in result.stderr
    assert "--host" in result.stderr
    assert (tmp_path / "host.json").read_bytes() == before


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 1}', "\x00\xff"], ids=repr)
def test_a_file_that_is_no_host_file_is_left_alone(
    content: str, tiny: Path, tmp_path: Path, unmeasured: list[Path]
) -> None:
    (tmp_path / "host.json").write_text(content, encoding="latin-1")
    result = bench(tiny, "--host", str(tmp_path / "host.json"))
    assert (result.exit_code, result.stdout, unmeasured) == (2, "", [])
    assert "bigrun info" in result.stderr
    assert (tmp_path / "host.json").read_text(encoding="latin-1") == content


def test_a_place_that_cannot_be_written_is_said_before_the_run(
    tiny: Path, tmp_path: Path, unmeasured: list[Path]
) -> None:
    (tmp_path / "file").write_text("")
    result = bench(tiny, "--host", str(tmp_path / "file" / "host.json"))
    assert (result.exit_code, result.stdout) == (2, "")
    assert "cannot be written" in result.stderr
    assert "--host" in result.stderr


def test_a_known_file_is_not_measured_again(tmp_path: Path, unmeasured: list[Path]) -> None:
    write(HOST, tmp_path / "host.json")
    assert replace(host_to_calibrate(tmp_path / "host.json"), where="") == HOST
    assert host_to_calibrate(tmp_path / "other.json").where == str(tmp_path / "other.json")
    assert unmeasured == [tmp_path / "other.json"]
    assert read(tmp_path / "other.json") == host_to_calibrate(tmp_path / "other.json")


def test_a_run_has_no_figure_that_json_cannot_hold() -> None:
    for run in runs(START, *SEEN, "mixtral-8x7b"):
        assert all(math.isfinite(value) for _, work in run.parts for value in asdict(work).values())
    assert Run("", ((2, Work(weights=8.5e9)),), 1.0).predicted(START) == pytest.approx(2 * 8.5e9 / START.read)
    assert Phase("decode", 1, 1, 1, 1) == decode_phase(1, 1)
