"""What the measurements of gpu.py share: rows of the report, a clock, the roof of memory, and made-up tensors.

Emulated (no GPU; Triton's interpreter), every line runs on tiny shapes and the host's clock: nothing is measured then.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import ceil, isfinite
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
ALIGN = 64  # int8 rows are padded to a multiple of this
SPLIT = 16 * 2**17  # sums that a linear which splits K may leave, for 16 rows
SIDE = 128  # outlier columns of which dense copies are made


@dataclass(frozen=True)
class Row:
    """One line of the report. `figure` None: `note` says why; `met` None: there is no bar, or nothing was measured."""

    name: str
    figure: float | None
    unit: str = ""
    bar: str = ""
    met: bool | None = None
    note: str = ""


class Bench:
    """A GPU, or its emulation on the host, and what measures on it. `folder` is for checkpoints."""

    def __init__(self, emulate: bool, folder: Path):
        self.emulate, self.folder = emulate, folder
        self.device = torch.device("cpu" if emulate else "cuda")
        torch.set_float32_matmul_precision("highest")  # references are IEEE's
        self._generator = torch.Generator(self.device).manual_seed(0)

    def pick(self, real: T, tiny: T) -> T:
        """The shape for a GPU, or the one for its emulation. Names of rows always tell the GPU's."""
        return tiny if self.emulate else real

    # -------------------------------------------------------------------------------------------------------- rows

    def checked(self, name: str, figure: float, most: float, unit: str = "", note: str = "") -> Row:
        """A row of correctness: its bar holds emulated too."""
        good = isfinite(figure)
        return Row(
            name,
            figure if good else None,
            unit,
            f"≤ {most:.3g}",
            good and figure <= most,
            note or ("" if good else "not a number"),
        )

    def timed(
        self, name: str, figure: float, unit: str, least: float | None = None, most: float | None = None, note: str = ""
    ) -> Row:
        """A row of speed or size: emulated, its bar says nothing."""
        bar = f"≥ {least:g}" if least is not None else f"≤ {most:g}" if most is not None else ""
        met = None if not bar else figure >= least if least is not None else figure <= (most or 0)
        return Row(name, figure, unit, bar, None if self.emulate else met, note)

    # ------------------------------------------------------------------------------------------------------- clocks

    def sync(self) -> None:
        if not self.emulate:
            torch.cuda.synchronize()

    def copies(self, nbytes: int) -> int:
        """How many buffers of this size do not fit the L2 cache together, by far."""
        if self.emulate:
            return 2
        return max(2, ceil(4 * torch.cuda.get_device_properties(self.device).L2_cache_size / nbytes))

    def seconds(self, call: Callable[[int], object], turns: int = 1) -> float:
        """Device seconds of one call: the median of replays of a CUDA graph of call(0), call(1) and so on, so many that what
        lies between replays is little beside them."""
        turns = self.pick(turns * ceil(24 / turns), 1)
        if not self.emulate:
            call(0)  # compiles

        def calls() -> None:
            for turn in range(turns):  # what a call returns is let go: the graph's memory is then one call's
                call(turn)

        return self.graph_seconds(self.graph(calls)) / turns

    def graph(self, calls: Callable[[], object]) -> Callable[[], object]:
        """All that the calls launch as one CUDA graph; compile before."""
        if self.emulate:
            return calls
        self.sync()
        usual, graph = torch.cuda.current_stream(), torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                calls()
        except BaseException:
            torch.cuda.set_stream(usual)  # a capture that fails does not go back to it
            raise
        return graph.replay

    def graph_seconds(self, replay: Callable[[], object]) -> float:
        """The median between device events, replays being asked for without a pause, so that none waits for the host."""
        if self.emulate:
            return self.wall(replay, 1)
        once = self.wall(replay, 2)
        rounds = max(5, min(60, int(0.15 / once)))
        events = [torch.cuda.Event(enable_timing=True) for _ in range(rounds + 1)]
        replay()
        for event in events[:-1]:
            event.record()
            replay()
        events[-1].record()
        self.sync()
        between = [first.elapsed_time(second) for first, second in pairwise(events)]
        return statistics.median(between[1:]) / 1e3

    def wall(self, call: Callable[[], object], rounds: int = 5) -> float:
        """The median seconds of the host's clock, each call waited for."""
        times = []
        for _ in range(self.pick(rounds, 1)):
            self.sync()
            started = time.perf_counter()
            call()
            self.sync()
            times.append(time.perf_counter() - started)
        return statistics.median(times)

    def busy(self, call: Callable[[], object]) -> float:
        """Seconds that the device computed during the call; 0 where the profiler saw nothing of it. (Gaps are not its to
        tell: it makes them wider.)"""
        from torch.autograd import DeviceType
        from torch.autograd.profiler import profile  # torch.profiler, built on it, imports the compiler: seconds

        self.sync()
        with profile(use_cpu=self.emulate, use_device=self.pick("cuda", None), use_kineto=True) as trace:
            call()
            self.sync()
        kind = DeviceType.CPU if self.emulate else DeviceType.CUDA
        return sum(e.time_range.end - e.time_range.start for e in trace.function_events if e.device_type == kind) / 1e6

    def idle(self, name: str, call: Callable[[], object], whole: float, turns: int) -> Row:
        """The share of the `whole` seconds that a call of so many turns takes, as measured before, in which the device
        computes nothing."""
        try:
            busy = self.busy(call)
        except (RuntimeError, AssertionError) as error:
            return Row(name, None, "of the time", note=f"failed: {' '.join(str(error).split())[:100]}")
        if not busy:
            return Row(name, None, "of the time", note="the profiler saw nothing")
        note = f"{1e3 * busy / turns:.3f} ms of kernels a turn"
        return self.timed(name, max(0.0, 1 - busy / whole), "of the time", note=note)

    @cached_property
    def copy_bandwidth(self) -> float:
        """Bytes/s, read and written, of torch's copy of a large buffer within the device."""
        nbytes = self.pick(2**30, 2**16)
        source, target = (torch.ones(nbytes, dtype=torch.uint8, device=self.device) for _ in range(2))
        launched = self.graph_seconds(lambda: target.copy_(source))  # a graph may have the copy made by another engine
        return 2 * nbytes / min(launched, self.seconds(lambda turn: target.copy_(source)))

    # ------------------------------------------------------------------------------------------------------ tensors

    def normal(self, *shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
        return torch.randn(shape, generator=self._generator, device=self.device, dtype=torch.float32).to(dtype)

    def integers(self, low: int, high: int, *shape: int, dtype: torch.dtype = torch.int8) -> Tensor:
        return torch.randint(low, high, shape, generator=self._generator, device=self.device, dtype=dtype)

    def poisoned(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Memory for a result: an entry that is not written shows."""
        return torch.full(shape, float("nan") if dtype.is_floating_point else 99, dtype=dtype, device=self.device)

    def constants(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Constants between 0.005 and 0.015."""
        uniform = torch.rand(shape, generator=self._generator, device=self.device)
        return (0.01 * (0.5 + uniform)).to(dtype)

    def weight(self, n: int, k: int, bias: bool = False, gain: float = 1.0) -> Any:
        """A linear's int8 weight, row by row, padded with zeros as the loader pads it; what it makes of normal activations
        has about the size of `gain`."""
        from bigrun_kernels.ops import Weight

        q = self.integers(-127, 128, n, ceil(k / ALIGN) * ALIGN)
        q[:, k:] = 0
        offset = self.normal(n, dtype=torch.float32) if bias else torch.empty(0, device=self.device)
        return Weight("int8", q, self.constants(n) * (gain * 1.36 / k**0.5), offset, k)

    def activations(self, m: int, k: int, outliers: int = 0) -> Tensor:
        """float16 [m, k] below 5, but for this many columns of 20 to 60 spread over k."""
        x = self.normal(m, k).clamp(-5, 5)
        if outliers:
            columns = torch.arange(outliers, device=self.device) * k // outliers
            x[:, columns] = x[:, columns].sign() * (20 + 8 * x[:, columns].abs())
        return x

    def ops(
        self, rows: int, widest: int, longest: int, heads: int = 1, dim: int = 16, spans: int = 1, batch: int = 1
    ) -> Any:
        """The engine's own ops on Triton, for steps of at most `rows` tokens through linears of at most `widest` inputs and
        `longest` outputs; decode attends with `heads` of `dim` over `spans` of 128 positions."""
        from bigrun_kernels.gpu import tables
        from bigrun_kernels.gpu.triton_ops import TritonOps

        widest = ceil(widest / ALIGN) * ALIGN
        shapes: Mapping[str, tuple[torch.dtype, tuple[int, ...]]] = {
            "quantised": (torch.int8, (rows, widest)),
            "scales": (torch.float32, (rows, widest // 32)),
            "columns": (torch.int32, (widest,)),
            "count": (torch.int32, (1,)),
            "x_side": (torch.float16, (rows, SIDE)),
            "w_side": (torch.int8, (longest, SIDE)),
            "split": (torch.float32, (SPLIT,)),
            "partial": (torch.float32, (batch, heads, spans, dim + 2)),
        }
        work = {name: self.poisoned(*shape, dtype=dtype) for name, (dtype, shape) in shapes.items()}
        work["marks"] = torch.zeros(widest, dtype=torch.int32, device=self.device)
        return TritonOps(work, tables.current(self.device), batch)


def on_host(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """A definition's answer on the host, where torch divides by a number as IEEE says (on a GPU it multiplies by the number's
    reciprocal, so that a constant, and then an integer now and then, is not the definition's); back where the first is."""
    device = arguments[0].device
    arguments = tuple(each.cpu() if isinstance(each, Tensor) else each for each in arguments)
    answer = function(*arguments, **options)
    return answer.to(device) if isinstance(answer, Tensor) else tuple(each.to(device) for each in answer)


def relative(got: Tensor, expected: Tensor) -> float:
    """The Frobenius norm of the difference over that of what was wanted, in float64."""
    expected = expected.double()
    return float((got.double() - expected).norm() / expected.norm())


def worst_row(got: Tensor, expected: Tensor) -> float:
    """The largest of the rows' relative errors: rows are of very different sizes where some attend to little."""
    expected = expected.double()
    return float(((got.double() - expected).norm(dim=1) / expected.norm(dim=1)).max())


def apart(got: Tensor, expected: Tensor) -> float:
    """The share of integers that are not equal; infinite where any is further off than one."""
    difference = (got.int() - expected.int()).abs()
    return float("inf") if int(difference.max()) > 1 else float((difference > 0).double().mean())


def unlike(got: Tensor, expected: Tensor) -> float:
    """How many entries are not equal to the bit; NaN equals NaN."""
    return float((~((got == expected) | (got.isnan() & expected.isnan()))).sum())
