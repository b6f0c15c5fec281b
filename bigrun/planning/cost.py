"""The cost model, first form: bytes over bandwidth and operations over rate, part after part, and hops between devices.

Decode reads every weight and the keys and values of a full context once a step; prefill does two operations for each
weight and token. These are roofs of the devices as named or assumed, not measurements of this host.
"""

from bigrun.model.spec import ModelSpec
from bigrun.planning.ledger import Ledger
from bigrun.planning.plan import Placement, Predicted
from bigrun.rig import ASSUMED_CPU, ASSUMED_DISK, GB, Rig

HOP_SECONDS = 20e-6  # a copy of some kilobytes between devices, mostly its launch


def predict(spec: ModelSpec, rig: Rig, ledger: Ledger, placements: tuple[Placement, ...], chunk: int) -> Predicted:
    """Prediction of a complete placement."""
    decode = prefill = 0.0
    batch, previous = ledger.options.batch, ""
    for placement in placements:
        tied_head = placement.part == "head" and spec.tied
        part = spec.part("embed" if tied_head else placement.part)
        matrices = sum(
            t.count for t in part.tensors if t.role == "linear" or (t.role == "table" and _is_head(placement))
        )
        stored = rig.device(placement.stored_on)
        for phase, device_name in (("decode", placement.decode_on), ("prefill", placement.prefill_on)):
            rates = rig.device(device_name).rates
            read = ledger.weights(part.name) if matrices else 0
            seconds = read / stored.rates.bandwidth if stored.kind == "disk" else read / rates.bandwidth
            rate = rates.int8 if placement.stored_as == "int8" else rates.fp16
            if phase == "decode":
                decode += max(seconds + ledger.kv(placement.part) / rates.bandwidth, 2 * matrices * batch / rate)
                decode += HOP_SECONDS if previous and previous != device_name else 0
                previous = device_name
            else:  # one chunk of the prompt; its head is computed for the last position alone
                rows = batch if _is_head(placement) else chunk
                prefill += max(seconds, 2 * matrices * rows / rate)
    load = spec.parameters * (4 if spec.checkpoint_dtype == "float32" else 2) / ASSUMED_DISK.bandwidth
    assumptions = (
        *rig.assumptions,
        f"cpu reads {ASSUMED_CPU.bandwidth / GB:.0f} GB/s, disk {ASSUMED_DISK.bandwidth / GB:.0f} GB/s (assumed, not measured)",
        "speeds are roofs: bytes over bandwidth and operations over rate",
    )
    return Predicted(chunk / prefill, batch / decode, load, assumptions)


def _is_head(placement: Placement) -> bool:
    return placement.part == "head"
