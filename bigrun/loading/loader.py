"""read → int8 → place, part by part. A generator: the run can show progress, and stop, between any two parts."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from bigrun.checkpoint.base import Checkpoint
from bigrun.checkpoint.tensor_map import PartSources, map_tensors, validate
from bigrun.devices.host_memory import HostMemory, Memory, views
from bigrun.devices.probe import available_memory
from bigrun.errors import RunError
from bigrun.loading.conversion import asked_early, convert, reading
from bigrun.loading.int8_cache import Int8Cache
from bigrun.model.layout import Layout
from bigrun.model.spec import ModelSpec, Part
from bigrun.planning.plan import Plan
from bigrun.progress import QUIET, Report

CROWDED = 0.75  # of the memory that is available

Work = list[tuple[Part, PartSources]]


@dataclass(frozen=True)
class LoadedPart:
    """A part where it lives: its arrays by their stored names (layout.py)."""

    part: Part
    layout: Layout
    device: str
    arrays: Mapping[str, Any]  # NumPy's, on a real GPU torch's
    read_bytes: int


def load(
    checkpoint: Checkpoint,
    spec: ModelSpec,
    plan: Plan,
    layouts: Mapping[str, Layout],
    memories: Mapping[str, Memory],
    int8_cache: Int8Cache | None = None,
    report: Report = QUIET,
) -> Iterator[LoadedPart]:
    """Load every part to the device of the plan, converted as it arrives, in the order of execution.

    Peak host memory is the parts loaded so far and the current one in their stored form, and a few chunks of source rows
    (conversion.py), twice where they are dequantised: the 16-bit form of a whole layer never exists. What goes to a GPU goes
    there chunk by chunk, but for parts that an int8 cache is to have: those are held on the host until they are written. With
    `int8_cache`, parts that it has are mapped from it, and the others are written to it. CheckpointError names the tensor
    and the file: missing, of another shape or dtype, with NaN or inf, or left over without a place in the model.
    """
    if int8_cache is not None and int8_cache.alone:
        work: Work = [(part, {}) for part in spec.parts]
    else:
        work = map_tensors(checkpoint, spec)
        validate(checkpoint, spec, work)  # everything that headers can tell, before any weight is read
    report.expect(_bytes_ahead(checkpoint, work, layouts, int8_cache))
    ready = {} if int8_cache is None else int8_cache.ready((part for part, _ in work), report.moved)
    missing = [(part, sources) for part, sources in work if part.name not in ready]
    source_bytes = _bytes_ahead(checkpoint, missing, layouts, None)
    report.expect(source_bytes + sum(layouts[name].nbytes for name in ready))
    with reading(checkpoint, missing, _crowded(source_bytes + _host_bytes(plan))) as reader:
        for part, sources in work:
            device, layout = plan.placement(part.name).stored_on, layouts[part.name]
            if not part.tensors:
                yield LoadedPart(part, layout, device, {}, 0)
                continue
            if part.name in ready:
                arrays: Mapping[str, Any] = ready.pop(part.name).place(memories[device], layout)
                report.moved(f"{part.name} → {device}", layout.nbytes)
                yield LoadedPart(part, layout, device, arrays, 0)
                continue
            memory, what = memories[device], f"{part.name} → {device}"
            if memory.is_gpu and int8_cache is None:  # straight there, chunk by chunk
                target: Any = memory.part(layout, part.name)  # type: ignore[attr-defined]
                read = convert(checkpoint, part, sources, layout, target, reader, report.moved, what)
                yield LoadedPart(part, layout, device, target.arrays, read)
                continue
            holder = memory if isinstance(memory, HostMemory) else HostMemory("cpu", 2**62)
            arena = holder.arena(layout, part.name)
            arrays = views(arena, layout)
            read = convert(checkpoint, part, sources, layout, arrays, reader, report.moved, what)
            if int8_cache is not None:
                int8_cache.write(part, arena)
            arrays = memory.upload(arena, layout) if memory.is_gpu else arrays
            yield LoadedPart(part, layout, device, arrays, read)
    if int8_cache is not None:
        int8_cache.finish()
        if int8_cache.failure is not None:  # the parts in memory are as good without
            report.note(f"{int8_cache.problem()}; the next start uses the parts that are there")


@contextmanager
def beginning(checkpoint: Checkpoint, spec: ModelSpec, int8_cache: Int8Cache | None) -> Iterator[None]:
    """What can begin before there are kernels, or memory, does: a cache's files are checked, else the disk is asked for the
    first of the source's, whose headers are known to be right."""
    if int8_cache is not None:
        int8_cache.begin(spec.parts)
        yield
        return
    with asked_early(checkpoint, map_tensors(checkpoint, spec)):
        yield


def convert_all(
    checkpoint: Checkpoint,
    spec: ModelSpec,
    layouts: Mapping[str, Layout],
    int8_cache: Int8Cache,
    report: Report = QUIET,
) -> int:
    """Write every part that the cache lacks, holding two at a time; returns how many that were. Damaged ones are made anew.

    CheckpointError as `load`; RunError where the disk does not take a part: what it has by then is kept.
    """
    work = map_tensors(checkpoint, spec)
    ready = int8_cache.ready(part for part, _ in work)
    missing = [(part, sources) for part, sources in work if part.name not in ready and part.tensors]
    ready.clear()
    source_bytes = _bytes_ahead(checkpoint, missing, layouts, None)
    report.expect(source_bytes)
    memory = HostMemory("cpu", 2**62)
    crowded = _crowded(source_bytes + sum(layouts[part.name].nbytes for part, _ in missing))
    with reading(checkpoint, missing, crowded) as reader:
        for part, sources in missing:
            layout = layouts[part.name]
            arena = memory.arena(layout, part.name)
            convert(checkpoint, part, sources, layout, views(arena, layout), reader, report.moved, part.name)
            int8_cache.write(part, arena)
            if int8_cache.failure is not None:
                break
    int8_cache.finish()
    if int8_cache.failure is not None:
        raise RunError(f"{int8_cache.problem()} and give the same command: it goes on from there")
    return len(missing)


def _crowded(nbytes: int) -> bool:
    """Whether the page cache cannot comfortably hold the source beside what is made of it. Then its pages are given back as
    they are converted: making the system look for others to give up took twice as long as the conversion."""
    return nbytes > CROWDED * sum(available_memory())


def _host_bytes(plan: Plan) -> int:
    return sum(device.used_bytes for device in plan.devices if device.kind == "cpu" or device.virtual)


def _bytes_ahead(
    checkpoint: Checkpoint, work: Work, layouts: Mapping[str, Layout], int8_cache: Int8Cache | None
) -> int:
    """Bytes that are to be read for these parts: of their sources, or of the cache alone."""
    if int8_cache is not None:
        return sum(layouts[part.name].nbytes for part, _ in work)
    names = {s.name for _, sources in work for group in sources.values() for s in group}
    return sum(checkpoint.tensors[name].nbytes for name in names)
