"""The planner: (spec, rig, options) → Plan. Pure: no files, no GPU, no clock; the same inputs give the same plan.

First rule of placement: blocks fill the GPUs in order, each with its keys and values beside it and the workspace of
the steps that will run there; what is left goes to the CPU, then to the disk. The head (and the table that a tied
model shares with it) is tried on every device and the prefill chunk in several sizes; of all these plans the best one
keeps most blocks on GPUs, then the head, then the largest chunk.
"""

from dataclasses import dataclass, field

from bigrun.errors import CallError
from bigrun.model.memory import KV_FORMATS
from bigrun.model.spec import ModelSpec
from bigrun.planning.cost import predict
from bigrun.planning.ledger import Ledger
from bigrun.planning.plan import DevicePlan, Options, Placement, Plan
from bigrun.rig import Device, Rig
from bigrun.sizes import format_size

CHUNKS = (512, 256, 128, 64, 32)  # tokens of a prefill step
MOST_TOKENS = 2**28
STAGING_SLOTS = 2  # of the largest part on the disk: one is read while the other is computed


@dataclass
class Shelf:
    """A device while it is being filled."""

    device: Device
    ledger: Ledger
    chunk: int
    parts: list[str] = field(default_factory=list)
    weights: int = 0
    kv: int = 0
    staging: int = 0
    blocks: bool = False
    head: bool = False
    embed: bool = False
    computer: "Shelf | None" = None  # who computes what is stored here, where that is another device
    prepaid: bool = False  # keys and values of all blocks to come, and the slots to stage them, are already counted

    def workspace(self) -> int:
        if not (self.blocks or self.head or self.embed):
            return 0
        return self.ledger.workspace(self.chunk, self.blocks, self.head)

    def used(self) -> int:
        return self.weights + self.kv + self.workspace() + self.staging + self.device.reserve_bytes

    def prepay(self, parts: list[str]) -> bool:
        """Count what computing all these blocks takes here, wherever they will be stored; False if that does not fit."""
        before = dict(vars(self))
        self.kv += sum(map(self.ledger.kv, parts))
        self.staging = STAGING_SLOTS * max(map(self.ledger.weights, parts))
        self.blocks = self.prepaid = True
        if self.used() <= self.device.budget_bytes:
            return True
        vars(self).update(before)
        return False

    def takes(self, part: str) -> bool:
        """Put the part here if it fits, with what computing it needs here or where it is computed."""
        kind = part.partition(".")[0]
        worker = self.computer or self
        before = [
            (shelf, dict(vars(shelf), parts=list(shelf.parts))) for shelf in {id(s): s for s in (self, worker)}.values()
        ]
        self.parts.append(part)
        self.weights += self.ledger.weights(part)
        worker.kv += 0 if worker.prepaid else self.ledger.kv(part)
        worker.blocks |= kind == "blocks"
        worker.head |= kind == "head"
        worker.embed |= kind == "embed"
        if worker is not self:
            worker.staging = max(worker.staging, STAGING_SLOTS * self.ledger.weights(part))
        if all(shelf.used() <= shelf.device.budget_bytes for shelf, _ in before):
            return True
        for shelf, state in before:
            vars(shelf).update(state)
        return False


@dataclass(frozen=True)
class Attempt:
    """One way to fill the rig, and how good it is."""

    chunk: int
    shelves: tuple[Shelf, ...]
    unplaced: tuple[str, ...]

    @property
    def merit(self) -> tuple:
        gpu_parts = [part for shelf in self.shelves if shelf.device.kind == "gpu" for part in shelf.parts]
        on_disk = sum(len(shelf.parts) for shelf in self.shelves if shelf.device.kind == "disk")
        blocks = sum(part.startswith("blocks.") for part in gpu_parts)
        return (-len(self.unplaced), -on_disk, blocks, "head" in gpu_parts, self.chunk)


def make_plan(spec: ModelSpec, rig: Rig, options: Options) -> Plan:
    """The best plan of the first rule; `fits` is False, with `unplaced` and `hint`, where none takes everything."""
    _check(spec, options)
    ledger = Ledger(spec, options)
    hosts = [device.name for device in rig.devices if device.kind != "disk"]
    chunks = [chunk for chunk in CHUNKS if chunk < 2 * options.context] or [CHUNKS[-1]]
    # GPUs from the last to the first: the head follows the last block. max() keeps the first of equals.
    heads = [device.name for device in reversed(rig.gpus)] + [name for name in hosts if name == "cpu"]
    with_disk = any(device.kind == "disk" for device in rig.devices)
    attempts = [_fill(spec, rig, ledger, chunk, head, False) for chunk in chunks for head in heads]
    best = max(attempts, key=lambda attempt: attempt.merit)
    if best.unplaced and with_disk:
        attempts += [_fill(spec, rig, ledger, chunk, head, True) for chunk in chunks for head in heads]
        best = max(attempts, key=lambda attempt: attempt.merit)
    return _plan(spec, rig, ledger, best)


def _check(spec: ModelSpec, options: Options) -> None:
    if not 1 <= options.context <= MOST_TOKENS:
        raise CallError(f"--context {options.context}: give a number of tokens between 1 and {MOST_TOKENS}")
    if spec.position_rows and options.context > spec.context_limit:
        raise CallError(f"--context {options.context}: {spec.name} has learned positions for {spec.context_limit}")
    if not 1 <= options.batch <= 65536:
        raise CallError(f"--batch {options.batch}: give a number of sequences between 1 and 65536")
    if options.kv not in KV_FORMATS:
        raise CallError(f"--kv {options.kv!r}: choose 16bit or int8")
    options.storage.check_names(spec)


def _fill(spec: ModelSpec, rig: Rig, ledger: Ledger, chunk: int, head_device: str, to_disk: bool) -> Attempt:
    """One attempt. `to_disk`: the CPU first keeps room for what it will compute of the blocks on the disk."""
    shelves = {device.name: Shelf(device, ledger, chunk) for device in rig.devices}
    if "disk" in shelves:
        shelves["disk"].computer = shelves["cpu"]
    unplaced = []

    def put(part: str, names: list[str]) -> bool:
        for name in names:
            if shelves[name].takes(part):
                return True
        unplaced.append(part)
        return False

    put("norm", [head_device])
    put("head", [head_device])
    if spec.tied:  # its table is the head's: stored once, read for both
        put("embed", [head_device])
    order = [device.name for device in rig.devices]
    waiting = [part.name for part in spec.parts if part.name.startswith("blocks.")]
    for name in order:
        if name == "cpu" and to_disk and waiting and not shelves["cpu"].prepay(waiting):
            continue
        while waiting and shelves[name].takes(waiting[0]):
            waiting.pop(0)
    unplaced += waiting
    if not spec.tied:  # a lookup reads one row a token: the table costs nothing in host memory
        put("embed", sorted(order, key=lambda name: (name == "disk", name != "cpu")))
    return Attempt(chunk, tuple(shelves.values()), tuple(unplaced))


def _plan(spec: ModelSpec, rig: Rig, ledger: Ledger, attempt: Attempt) -> Plan:
    placements = []
    homes = {part: shelf.device for shelf in attempt.shelves for part in shelf.parts}
    for part in spec.parts:
        if part.name not in homes:
            continue
        home = homes[part.name]
        runs_on = "cpu" if home.kind == "disk" else home.name
        stored = ledger.layouts["embed" if part.name == "head" and spec.tied else part.name]
        placements.append(
            Placement(
                part=part.name,
                slice=None,
                stored_on=home.name,
                stored_as=stored.stored_as,
                prefill_on=runs_on,
                decode_on=runs_on,
                kv_on=runs_on if part.name.startswith("blocks.") else None,
                weights_bytes=ledger.weights(part.name),
                kv_cache_bytes=ledger.kv(part.name),
            )
        )
    fits = not attempt.unplaced
    unplaced = tuple(part.name for part in spec.parts if part.name in attempt.unplaced)
    return Plan(
        model=spec.name,
        family=spec.family,
        parameters=spec.parameters,
        fits=fits,
        context_tokens=ledger.options.context,
        batch=ledger.options.batch,
        prefill_chunk_tokens=attempt.chunk,
        weights=ledger.options.storage.weights,
        kv=ledger.options.kv,
        devices=tuple(_device_plan(shelf, spec) for shelf in attempt.shelves),
        placements=tuple(placements),
        predicted=predict(spec, rig, ledger, tuple(placements), attempt.chunk) if fits else None,
        unplaced=unplaced,
        hint="" if fits else _hint(rig, ledger, unplaced),
    )


def _device_plan(shelf: Shelf, spec: ModelSpec) -> DevicePlan:
    used = shelf.used()
    order = {part.name: i for i, part in enumerate(spec.parts)}
    return DevicePlan(
        name=shelf.device.name,
        kind=shelf.device.kind,
        virtual=shelf.device.virtual,
        budget_bytes=shelf.device.budget_bytes,
        used_bytes=used,
        free_bytes=shelf.device.budget_bytes - used,
        weights_bytes=shelf.weights,
        kv_cache_bytes=shelf.kv,
        workspace_bytes=shelf.workspace(),
        staging_bytes=shelf.staging,
        pinned_bytes=0,
        reserve_bytes=shelf.device.reserve_bytes,
        parts=tuple(sorted(shelf.parts, key=order.__getitem__)),
    )


def _hint(rig: Rig, ledger: Ledger, unplaced: tuple[str, ...]) -> str:
    """What is missing, and the option that would give it."""
    missing = sum(ledger.weights(part) + ledger.kv(part) for part in unplaced)
    missing += ledger.workspace(CHUNKS[-1], blocks=True, head=True)
    cpu = next((device for device in rig.devices if device.kind == "cpu"), None)
    have = cpu.budget_bytes if cpu else 0
    need = missing + have
    blocks = sum(part.startswith("blocks.") for part in unplaced)
    what = f"{blocks} blocks" if blocks else ""
    others = [part for part in unplaced if not part.startswith("blocks.")]
    what = " and ".join(filter(None, [what, ", ".join(others)]))
    return (
        f"{format_size(missing)} are missing for {what}: give --cpu {_gigabytes(need)}, more or larger --gpus, "
        f"or a smaller --context or --batch"
    )


def _gigabytes(count: int) -> str:
    return f"{-(-int(count * 1.02) // 10**9)}GB"
