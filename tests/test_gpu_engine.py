"""A model on a real GPU's engine, without one: host memory stands in for the card (BIGRUN_GPU=emulate), torch alone or
Triton's interpreter for its kernels. What CUDA itself does (graphs, streams, its allocator) is benchmarks/gpu.py's to check."""

from dataclasses import replace
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bigrun import Runner, plan
from bigrun.errors import BudgetExceeded, CallError, CheckpointError, RunError
from bigrun.execute import gpu_backend as gpu_kernels
from bigrun.execute.engine import Batch, runs_of
from bigrun.execute.gpu_engine import runs_of_tokens
from bigrun.execute.gpu_sampling import chosen_on_device
from bigrun.execute.sampling import Sampling, choose
from bigrun.sizes import format_size
from bigrun_kernels import lanes, reference
from support import checkpoints
from support.commands import run_command
from support.long import only

IDS = np.random.default_rng(0).integers(0, 200, 13)
CONTEXT = 100


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    checkpoints.llama(folder / "llama", layers=4, tokenizer=True)
    checkpoints.llama(folder / "tied", tied=True, bias=True, dtype="bfloat16", tokenizer=True)
    checkpoints.bloom(folder / "bloom")
    checkpoints.opt(folder / "opt")
    return {name: folder / name for name in ("llama", "tied", "bloom", "opt")}


@pytest.fixture(autouse=True)
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIGRUN_GPU", "emulate")


def runner(folder: Path, gpus: str | None = "1x100MB", **options: Any) -> Runner:
    defaults = {"context": CONTEXT, "cpu": "200MB", "progress": False, "kernels": "reference", "mode": "exact"}
    return Runner(str(folder), gpus=gpus, **{**defaults, **options})


def both(made: Runner) -> tuple[np.ndarray, np.ndarray]:
    """Logits of a prompt's last token, and of a token after it."""
    made.executor.clear(0)
    return made.executor.forward({0: IDS})[0], made.executor.forward({0: [7]})[0]


def distance(ours: Any, theirs: Any) -> float:
    return max(float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in zip(ours, theirs, strict=True))


@pytest.fixture(scope="module")
def on_the_cpu(folders: dict[str, Path]) -> dict[str, Any]:
    outputs = {}
    for name, folder in folders.items():
        with runner(folder, gpus="none") as made:
            outputs[name] = both(made)
    return outputs


@pytest.mark.parametrize("name", ["llama", "tied", "bloom", "opt"])
def test_logits_are_the_cpus_and_bytes_are_the_plans(
    name: str, folders: dict[str, Path], on_the_cpu: dict[str, Any]
) -> None:
    with runner(folders[name]) as made:
        assert distance(both(made), on_the_cpu[name]) < 3e-3  # float16 between linears
        device = made.plan.device("cuda:0")
        assert "blocks.1" in device.parts
        assert made.memories["cuda:0"].used_bytes == device.used_bytes - device.reserve_bytes
        assert made.kernels.startswith("torch")


@pytest.mark.parametrize("cards", [1, 2])
def test_a_hybrid_runs_as_one(cards: int, folders: dict[str, Path], on_the_cpu: dict[str, Any]) -> None:
    other = "cpu" if cards == 1 else "cuda:1"
    for budget in range(
        710 if cards == 1 else 760, 900, 5
    ):  # kB: a few of the four blocks have room beside a step's buffers
        room: dict[int | str, str | int] = {
            0: f"{budget}KB",
            **({"cpu": "200MB"} if cards == 1 else {1: f"{budget}KB"}),
        }
        candidate = plan(str(folders["llama"]), max_memory=room, context=CONTEXT)
        if candidate.fits and {p.decode_on for p in candidate.blocks} == {"cuda:0", other}:
            break
    with runner(folders["llama"], gpus=None, cpu=None, max_memory=room) as made:
        assert {p.decode_on for p in made.plan.blocks} == {"cuda:0", other}
        assert distance(both(made), on_the_cpu["llama"]) < 3e-3
        for device in made.plan.devices:
            if device.kind == "gpu":
                assert made.memories[device.name].used_bytes == device.used_bytes - device.reserve_bytes


@pytest.mark.parametrize(
    "options",
    [
        {"kv": "int8"}, {"weights": "16bit"}, {"weights": "float32"}, {"skip": ("down", "blocks.0.qkv")},
        {"head": "16bit"}, {"batch": 3},
    ],
    ids=str,
)  # fmt: skip
def test_storage_is_followed(options: dict[str, Any], folders: dict[str, Path]) -> None:
    with runner(folders["tied"], gpus="none", **options) as cpu, runner(folders["tied"], **options) as gpu:
        bar = 1e-5 if options.get("weights") == "float32" else 2e-2 if {"weights", "skip"} & set(options) else 6e-3
        assert distance(both(gpu), both(cpu)) < bar
        device = gpu.plan.device("cuda:0")
        wide = "weights" in options or "skip" in options or "head" in options
        library = 64 * 2**20 if wide else 0  # the matrix library takes it itself
        assert gpu.memories["cuda:0"].used_bytes == device.used_bytes - device.reserve_bytes - library


def test_sequences_of_one_step_do_not_touch_each_other(folders: dict[str, Path]) -> None:
    with runner(folders["llama"], batch=3) as made:
        alone = {}
        for s, ids in ((0, IDS), (1, IDS[:5]), (2, IDS[3:9])):
            made.executor.clear(0)
            made.executor.forward({0: ids})
            alone[s] = made.executor.forward({0: [9]})[0]
        made.executor.clear(0)
        made.executor.forward({0: IDS, 1: IDS[:5], 2: IDS[3:9]})
        together = made.executor.forward({s: [9] for s in range(3)})
        for s in range(3):
            assert distance([together[s]], [alone[s]]) < 1e-3


@pytest.mark.parametrize("mode", only(["exact", "auto", "llm.int8"], quick=["exact", "auto"]))
def test_triton_computes_what_torch_does(mode: str, folders: dict[str, Path]) -> None:
    ids = IDS[:3]
    outputs = []
    for kernels in ("triton", "reference"):
        with runner(folders["tied"], kernels=kernels, mode=mode, threshold=1.5) as made:
            engine: Any = made.executor.engines["cuda:0"]
            if mode == "auto":  # the reference has no table of its own
                engine.arithmetic = replace(engine.arithmetic, prefill="grouped")
            outputs.append([made.executor.forward({0: ids})[0], made.executor.forward({0: [7]})[0]])
            assert made.kernels.startswith("Triton" if kernels == "triton" else "torch")
    # an int8 rounded the other way by a last bit of its float16 input is a 250th of that entry
    assert distance(*outputs) < (2e-3 if mode == "exact" else 2e-2)


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8, "seed": 3}, {"temperature": 1.5, "top_k": 7, "seed": 4}])
def test_tokens_that_the_device_chooses_are_the_hosts(
    sampling: dict[str, Any], folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with runner(folders["tied"]) as made:
        assert made.executor._choosing_engine(Sampling(**sampling)) is not None
        ours = made.generate(list(IDS), 20, **sampling).token_ids
        again = made.generate(list(IDS), 9, **sampling).token_ids  # one more was computed than was asked for
        monkeypatch.setattr(type(made.executor), "_choosing_engine", lambda *_: None)
        theirs = made.generate(list(IDS), 20, **sampling).token_ids
    assert ours == theirs
    assert again == theirs[: len(again)]


def test_a_full_context_ends_what_the_device_chooses(folders: dict[str, Path]) -> None:
    with runner(folders["tied"]) as made:
        made.tokenizer.stop_ids = frozenset()
        result = made.generate(list(IDS), 1000)
        assert len(result.token_ids) == CONTEXT - len(IDS) + 1
        tokens = made.executor.generate(list(IDS), Sampling(), 1000)
        assert tuple(islice(tokens, len(result.token_ids))) == result.token_ids
        with pytest.raises(RunError, match="context of 100 tokens is full"):
            next(tokens)


@pytest.mark.parametrize("case", ["ties", "top_k ties", "barred", "draws"])
def test_the_device_chooses_as_the_host_does(case: str) -> None:
    rng = np.random.default_rng(5)
    logits = rng.normal(size=300).astype(np.float32)
    if case == "ties":
        logits[[40, 7, 200]] = 9.0
    if case == "top_k ties":
        logits[50:90] = np.float32(1.25)
    if case == "barred":
        logits[::2] = -np.inf
    choice = torch.zeros(3, dtype=torch.int64)
    for position in range(40 if case != "ties" else 1):
        sampling = Sampling(0.0 if case == "ties" else 1.3, 30 if "top_k" in case else 0, 1.0, seed=11)
        chosen_on_device(torch.from_numpy(logits), sampling, 2, position, choice)
        assert choice.tolist()[:2] == [choose(logits, sampling, 2, position), 1]


def test_logits_that_are_no_numbers_are_told(folders: dict[str, Path]) -> None:
    with runner(folders["tied"]) as made:
        engine: Any = made.executor.engines["cuda:0"]
        tokens = made.executor.generate([5], Sampling(), 4)
        next(tokens)  # which the host chose
        engine.blocks[1]["down"].scale.fill_(float("nan"))
        with pytest.raises(RunError, match=r"logits at position 2 of sequence 0 are nan \(first at token 0\)"):
            next(tokens)


def test_parts_lie_row_by_row_on_a_gpu(folders: dict[str, Path], tmp_path: Path) -> None:
    llama, cache = folders["llama"], tmp_path / "c"
    made = [runner(llama, cache=cache), runner(llama, cache=cache), runner(llama)]  # written, mapped, neither
    with runner(llama, gpus="none") as cpu:
        for name in ("blocks.2", "head"):
            theirs = cpu.executor.parts[name].arrays
            for each, (array, value) in product(made, theirs.items()):
                got = each.executor.parts[name].arrays[array].numpy()
                if value.dtype == np.int8:
                    assert np.array_equal(got, lanes.unpack(value, *got.shape)), array
                elif value.dtype == np.uint16:
                    assert np.array_equal(got.view(np.uint16), lanes.unpack_scale(value, len(got))), array
                else:
                    assert np.array_equal(got, value), array


def test_the_second_decode_step_is_captured_and_later_ones_replayed(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with runner(folders["tied"]) as made:
        engine: Any = made.executor.engines["cuda:0"]
        engine._capturing = True
        log: list[str] = []

        class Graph:
            def __init__(self, first: int, stop: int) -> None:
                log.append("captured")
                self.run = first, stop

            def replay(self) -> None:
                log.append("replayed")
                blocks(*self.run)

        def eager(*run: int) -> None:
            log.append("eager")
            blocks(*run)

        blocks = engine._blocks
        monkeypatch.setattr(engine, "_blocks", eager)
        monkeypatch.setattr(engine, "_capture", Graph)
        usual = [made.executor.forward({0: IDS})[0], *(made.executor.forward({0: [t]})[0] for t in (7, 8, 9))]
        assert log == ["eager", "eager", "captured", "replayed", "replayed"]
        monkeypatch.setattr(engine, "_capture", lambda *_: None)  # a driver that will not have it
        engine._graphs.clear()
        made.executor.clear(0)
        outputs = [made.executor.forward({0: IDS})[0], *(made.executor.forward({0: [t]})[0] for t in (7, 8, 9))]
        assert distance(outputs, usual) == 0


# --------------------------------------------------------------------------------------------------------- what fails


def test_a_gpu_that_is_not_there_is_named(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BIGRUN_GPU")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    with pytest.raises(CallError, match=r"cuda:0 cannot be run on: .*CUDA_VISIBLE_DEVICES='3' hides.*virtual"):
        runner(folders["llama"])


def test_a_card_that_is_full_is_told_before_anything_is_read(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB\nmore lines")

    monkeypatch.setattr("bigrun.devices.gpu_memory.torch.zeros", full)
    monkeypatch.setattr("bigrun.loading.loader.convert", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(RunError, match=r"cuda:0: the .* of the plan found no memory.*max_memory") as caught:
        runner(folders["llama"])
    assert "\n" not in str(caught.value)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A driver that has one card, of which `card(free, whole)` sets the bytes. What is allocated on it is counted and comes
    from host memory; all above the driver is bigrun's own."""
    monkeypatch.delenv("BIGRUN_GPU")
    state: dict[str, Any] = {"bytes": (0, 0), "taken": []}
    zeros = torch.zeros

    def allocate(size: int, *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        state["taken"].append((size, str(device)))
        return zeros(size, dtype=dtype)

    for name, answer in {
        "is_available": True, "device_count": 2, "get_device_name": "Imagined Card", "empty_cache": None,
        "reset_peak_memory_stats": None, "synchronize": None,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: state["bytes"])
    monkeypatch.setattr("bigrun.devices.gpu_memory.torch.zeros", allocate)

    def of(free: int, whole: int) -> Any:
        state["bytes"] = free, whole
        return state["taken"]

    return of


PLANNED = 64_000_000


@pytest.mark.parametrize("whole", [PLANNED, 100 * PLANNED], ids=["all of it", "others hold the rest"])
def test_a_card_with_as_much_free_as_planned_is_taken_whole_in_one_piece(card: Any, whole: int) -> None:
    from bigrun.devices.gpu_memory import GpuMemory

    taken = card(PLANNED, whole)
    memory = GpuMemory("cuda:1", whole, PLANNED)
    assert taken == [(PLANNED, "cuda:1")]
    memory.close()


@pytest.mark.parametrize(
    "whole", [PLANNED - 1, PLANNED, 100 * PLANNED], ids=["too small", "a byte in use", "mostly in use"]
)
def test_a_card_with_a_byte_less_free_than_planned_is_refused_whatever_its_size(card: Any, whole: int) -> None:
    from bigrun.devices.gpu_memory import GpuMemory

    taken = card(PLANNED - 1, whole)
    with pytest.raises(
        RunError, match=r"cuda:1 \(Imagined Card\): the 64.0 MB of the plan do not fit: 64.0 MB"
    ) as caught:
        GpuMemory("cuda:1", whole, PLANNED)
    message = str(caught.value)
    assert not isinstance(caught.value, BudgetExceeded)
    assert "max_memory: 60.8MB for this one" in message, "95 % of what is free"
    assert f"of {format_size(whole)} are free" in message
    assert "\n" not in message
    assert taken == [], "nothing is allocated on it"


def test_an_allocation_that_fails_says_what_is_free_then(card: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from bigrun.devices.gpu_memory import GpuMemory

    def full(*_: Any, **__: Any) -> Any:
        card(3_000_000, 8_000_000_000)  # another process was quicker
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 61 MiB\nmore lines")

    card(PLANNED, 8_000_000_000)
    monkeypatch.setattr("bigrun.devices.gpu_memory.torch.zeros", full)
    with pytest.raises(
        RunError, match=r"cuda:1: the 64.0 MB of the plan found no memory, 3.00 MB of 8.00 GB are free now"
    ):
        GpuMemory("cuda:1", 10**9, PLANNED)


def test_a_card_that_goes_missing_is_one_line(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with runner(folders["llama"]) as made:
        engine: Any = made.executor.engines["cuda:0"]

        def lost(*_: Any, **__: Any) -> Any:
            raise RuntimeError("CUDA error: unspecified launch failure\nCompile with TORCH_USE_CUDA_DSA")

        monkeypatch.setattr(engine.ops, "norm_linear", lost)
        with pytest.raises(RunError, match=r"cuda:0 failed during blocks 0 to 3 \(CUDA error.*nvidia-smi") as caught:
            made.executor.forward({0: IDS})
        assert "\n" not in str(caught.value)


def test_a_failed_load_gives_the_card_back(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from bigrun.devices.gpu_memory import GpuMemory

    closed = []
    monkeypatch.setattr(GpuMemory, "close", lambda self: closed.append(self.name))

    def broken(*_: Any, **__: Any) -> Any:
        raise CheckpointError("a shard is broken")

    monkeypatch.setattr("bigrun.loading.loader.convert", broken)
    with pytest.raises(CheckpointError):
        runner(folders["llama"])
    assert closed == ["cuda:0"]


def test_no_more_is_handed_out_than_was_planned() -> None:
    from bigrun.devices.gpu_memory import GpuMemory

    memory = GpuMemory("cuda:0", 10**6, 1000)
    memory.take(960, "weights", "a part")
    with pytest.raises(BudgetExceeded, match=r"cuda:0: workspace needs 100 B, of the planned 1.02 KB only 64 B"):
        memory.take(100, "workspace", "workspace")


def test_bfloat16_needs_a_card_that_has_it(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_kernels, "capability_of", lambda device: 75)
    monkeypatch.setattr("bigrun.loading.loader.convert", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(RunError, match=r"cuda:0 \(compute capability 7.5\) has no bfloat16"):
        runner(folders["tied"], head="16bit")


@pytest.mark.parametrize(
    ("capability", "built", "good"),
    [
        (90, ["sm_80", "sm_90"], True), (89, ["sm_80", "sm_86"], True), (120, ["sm_80", "sm_90a"], False),
        (120, ["sm_90", "compute_90"], True), (75, ["sm_80", "compute_80"], False), (86, ["sm_89"], False),
    ],
)  # fmt: skip
def test_a_torch_without_kernels_for_a_card_is_told(capability: int, built: list[str], good: bool) -> None:
    if good:
        gpu_kernels.check_torch("cuda:0", capability, built)
        return
    with pytest.raises(CallError, match=rf"cuda:0: this torch .* compute capability {capability / 10}"):
        gpu_kernels.check_torch("cuda:0", capability, built)


@pytest.mark.parametrize("kernels", ["auto", "triton"])
def test_a_triton_that_does_not_run_is_left_aside(
    kernels: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.")

    gpu_kernels._broken.cache_clear()
    monkeypatch.setattr("bigrun_kernels.gpu.norm.norm", broken)
    try:
        if kernels == "triton":
            with pytest.raises(RunError, match=r"kernels triton: Triton does not run \(RuntimeError: Failed to find C"):
                runner(folders["llama"], kernels=kernels)
            return
        with runner(folders["llama"], kernels=kernels) as made:
            assert made.kernels.startswith("torch")
            assert any("Failed to find C compiler" in note for note in made.notes)
    finally:
        gpu_kernels._broken.cache_clear()


@pytest.mark.parametrize(("capability", "version", "why"), [(70, "3.9.0", "needs compute"), (120, "3.2.0", "not know")])
def test_cards_that_triton_does_not_know(
    capability: int, version: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import triton

    monkeypatch.setattr(gpu_kernels, "capability_of", lambda device: capability)
    monkeypatch.setattr(triton, "__version__", version)
    assert why in gpu_kernels._broken.__wrapped__(torch.device("cpu"))


def test_closing_gives_the_memory_back_whoever_holds_views_of_it(folders: dict[str, Path]) -> None:
    made = runner(folders["llama"])
    memory: Any = made.memories["cuda:0"]
    held = made.executor.parts["blocks.0"].arrays["qkv.weight"]
    assert memory._arena.untyped_storage().nbytes() == memory.planned_bytes
    made.close()
    assert held.untyped_storage().nbytes() == 0
    memory.close()  # twice does no harm


def test_a_second_card_that_is_full_gives_the_first_back(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from bigrun.devices.gpu_memory import GpuMemory

    closed, check = [], GpuMemory._check_free

    def full(self: Any, nbytes: int, what: str) -> None:
        check(self, nbytes, what)
        if self.name == "cuda:1":
            raise RunError("cuda:1 is full")

    monkeypatch.setattr(GpuMemory, "_check_free", full)
    monkeypatch.setattr(GpuMemory, "close", lambda self: closed.append(self.name))
    with pytest.raises(RunError, match="cuda:1 is full"):
        runner(folders["llama"], gpus=None, cpu=None, max_memory={0: "770KB", 1: "770KB"})
    assert closed == ["cuda:0"]


def test_a_graph_is_captured_on_a_stream_of_its_own_card(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    class Nothing:
        def __init__(self, *arguments: Any, **named: Any) -> None:
            seen.append((arguments, named))

        def __enter__(self) -> None:
            if seen[-1][1].get("stream") == "broken":
                raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")

        def __exit__(self, *_: Any) -> None: ...

    with runner(folders["tied"]) as made:
        engine: Any = made.executor.engines["cuda:0"]
        made.executor.forward({0: IDS})
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: "usual")
        monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: seen.append(stream))
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: "graph")
        monkeypatch.setattr(torch.cuda, "device", Nothing)
        monkeypatch.setattr(torch.cuda, "graph", Nothing)
        engine._stream = "mine"
        assert engine._capture(0, 2) == "graph"
        assert seen[1] == (("graph",), {"stream": "mine", "capture_error_mode": "thread_local"})
        engine._stream, engine._note = "broken", seen.append
        assert engine._capture(0, 2) is None
        assert seen[-2] == "usual", "the thread is back on its own stream"
        assert "runs without a CUDA graph (CUDA error: operation not permitted" in seen[-1]
        assert not engine._capturing


def test_kernels_are_chosen_by_name(folders: dict[str, Path]) -> None:
    with pytest.raises(CallError, match="kernels 'cublas': choose one of auto, triton, reference"):
        runner(folders["llama"], kernels="cublas")
    with pytest.raises(RunError, match="kernels triton: weights are not int8"):
        runner(folders["llama"], kernels="triton", weights="16bit")
    call = ["generate", "--model", str(folders["llama"]), "--gpus", "1x100MB", "--cpu", "200MB", "--context", "64"]
    result = run_command(*call, "--kernels", "reference", "--prompt", "hello", "--max-new-tokens", "3")
    assert result.exit_code == 0, result.stderr


# -------------------------------------------------------------------------------------------------------- small things


def test_tokens_are_cut_into_runs_of_one_sequence() -> None:
    def cut(sequences: list[int], positions: list[int]) -> list[tuple[int, ...]]:
        nothing = np.zeros(len(sequences), np.int64)
        batch = Batch(nothing, np.array(positions), np.array(sequences), nothing, nothing, "prefill")
        return [tuple(run) for run in runs_of_tokens(batch)]

    assert cut([0, 0, 0, 1, 1], [4, 5, 6, 0, 1]) == [(0, 3, 0, 4), (3, 5, 1, 0)]
    assert cut([2, 2, 2], [0, 1, 5]) == [(0, 2, 2, 0), (2, 3, 2, 5)]


def test_blocks_are_cut_into_runs_of_one_device() -> None:
    assert runs_of(["cpu", "cuda:0", "cuda:0", "cpu"]) == [(0, 1, "cpu"), (1, 3, "cuda:0"), (3, 4, "cpu")]


@pytest.mark.parametrize("group", [32, 64])
def test_the_grouped_reference_is_a_sum_over_groups(group: int) -> None:
    torch.manual_seed(0)
    x, q, scale = torch.randn(5, 100), torch.randint(-127, 128, (9, 100)).to(torch.int8), torch.rand(9)
    x[1, 3], x[2, 40], x[3] = 6.0, -30.0, 0.0
    expected = torch.zeros(5, 9, dtype=torch.float64)
    outliers = [3, 40]
    for first in range(0, 100, group):
        columns = [c for c in range(first, min(first + group, 100)) if c not in outliers]
        part = x[:, columns]
        unit = part.abs().amax(1) / 127
        integers = torch.round(part / torch.where(unit > 0, unit, 1.0)[:, None])
        expected += (integers.double() @ q[:, columns].double().T) * unit.double()[:, None]
    expected += x[:, outliers].double() @ q[:, outliers].double().T
    actual = reference.linear_grouped(x, q, scale, None, 6.0, group)
    assert torch.allclose(actual.double(), expected * scale.double(), rtol=1e-6)


def test_rotations_are_those_of_the_host_whichever_way_they_come(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    rotations = []
    for limit in (0, 2**15):  # all made on the device; copied
        monkeypatch.setattr("bigrun.execute.gpu_engine.SMALL_COPY", limit)
        with runner(folders["tied"]) as made:
            engine: Any = made.executor.engines["cuda:0"]
            positions = np.arange(90, dtype=np.int64)
            engine.work["positions"][:90] = torch.from_numpy(positions)
            rotations.append(engine._cos_sin(positions).clone())
    assert torch.allclose(rotations[0], rotations[1], rtol=0, atol=1e-7)
    assert rotations[0][0, :8].tolist() == [1.0] * 8
