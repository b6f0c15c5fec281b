"""Where a measured run differs from its prediction, with the reasons that can be known."""

from dataclasses import dataclass
from typing import Any

from bigrun.devices.noise import why_busy
from bigrun.measure.learning import mapped_bytes, read_bytes
from bigrun.planning.account import checkpoint

BELIEVED = 0.15  # of its prediction by which a figure may be off without a word
IN_MEMORY = 0.5  # of a checkpoint's bytes: of fewer that came from the disk, most were in memory already


@dataclass(frozen=True)
class Difference:
    """A figure that is more than BELIEVED off: `what` is prefill, decode (tokens/s) or load (seconds,
    without those of fetching)."""

    what: str
    measured: float
    predicted: float
    reasons: tuple[str, ...]

    @property
    def ratio(self) -> float:
        return self.measured / self.predicted


def differences(
    measured: dict[str, float], runner: Any, run_foreign: float, load_foreign: float, load_disk_bytes: int | None,
    compiled_before: bool,
) -> list[Difference]:  # fmt: skip
    """Those of prefill, decode and load that are more than BELIEVED off. `run_foreign` and `load_foreign` are shares of the CPU
    that others used meanwhile; `load_disk_bytes` what came from disks; `compiled_before`: whether kernels were compiled."""
    predicted = {
        "prefill": runner.plan.predicted.prefill_tokens_per_s,
        "decode": runner.plan.predicted.decode_tokens_per_s,
        "load": runner.plan.predicted.load_seconds,
    }
    found = []
    for what, value in measured.items():
        ratio = value / predicted[what]
        if abs(ratio - 1) > BELIEVED:
            if what == "load":
                reasons = _of_load(runner, ratio, load_foreign, load_disk_bytes, compiled_before)
            else:
                reasons = _of_run(runner, run_foreign)
            found.append(Difference(what, value, predicted[what], tuple(reasons)))
    return found


def _of_run(runner: Any, foreign: float) -> list[str]:
    plan = runner.plan
    reasons = [f"{busy} during the run"] if (busy := why_busy(foreign)) else []
    if plan.predicted.doubt:
        reasons.append(f"the CPU's figures were {plan.predicted.doubt}")
    gpus = [device for device in plan.devices if device.kind == "gpu" and device.parts]
    if any(device.virtual for device in gpus):
        reasons.append("virtual GPUs are predicted as if they were there")
    if any(not device.virtual for device in gpus):
        reasons.append("a card's kernels are predicted as shares of its published rates")
    return reasons


def _of_load(runner: Any, ratio: float, foreign: float, disk_bytes: int | None, compiled_before: bool) -> list[str]:
    reasons = [f"{busy} during the load" for busy in [why_busy(foreign)] if busy]
    nbytes, form = checkpoint(runner.spec)
    if not compiled_before:
        reasons.append("kernels were compiled in it")
    if runner.wrote_cache:
        reasons.append("an int8 cache was written")
    if form != "int8" and mapped_bytes(runner) and not read_bytes(runner):
        reasons.append("all parts came from the int8 cache, and nothing was converted")
    elif ratio < 1 and disk_bytes is not None and disk_bytes < IN_MEMORY * nbytes:
        reasons.append("its files were in memory already")
    return reasons
