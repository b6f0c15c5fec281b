"""read → int8 → place, part by part. A generator: the run can show progress, and stop, between any two parts."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from bigrun.checkpoint.tensor_map import PartSources, TensorMap
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

Work = Sequence[tuple[Part, PartSources]]


@dataclass(frozen=True)
class LoadedPart:
    """A part where it lives: its arrays by their stored names (layout.py)."""

    part: Part
    layout: Layout
    device: str
    arrays: Mapping[str, Any]  # NumPy's, on a real GPU torch's
    read_bytes: int


def load(
    spec: ModelSpec,
    source: TensorMap | None,
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
    `int8_cache`, parts that it has are mapped from it, and the others are written to it. `source` is a validated map, None
    for a conversion, whose cache has everything. CheckpointError names the tensor with NaN or inf in it, and its file.
    """
    work: Work = [(part, {}) for part in spec.parts] if source is None else source.parts
    report.expect(_source_bytes(source, work) if int8_cache is None else _stored_bytes(work, layouts))
    ready = {} if int8_cache is None else int8_cache.ready((part for part, _ in work), report.moved)
    missing = [(part, sources) for part, sources in work if part.name not in ready]
    source_bytes = _source_bytes(source, missing)
    report.expect(source_bytes + sum(layouts[name].nbytes for name in ready))
    with _reading(source, missing, _crowded(source_bytes + _host_bytes(plan))) as reader:
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
                read = convert(part, sources, layout, target, reader, report.moved, what)
                yield LoadedPart(part, layout, device, target.arrays, read)
                continue
            holder = memory if isinstance(memory, HostMemory) else HostMemory("cpu", 2**62)
            arena = holder.arena(layout, part.name)
            arrays = views(arena, layout)
            read = convert(part, sources, layout, arrays, reader, report.moved, what)
            if int8_cache is not None:
                int8_cache.write(part, arena)
            arrays = memory.upload(arena, layout) if memory.is_gpu else arrays
            yield LoadedPart(part, layout, device, arrays, read)
    if int8_cache is not None:
        int8_cache.finish()
        if int8_cache.failure is not None:  # the parts in memory are as good without
            report.note(f"{int8_cache.problem()}; the next start uses the parts that are there")


@contextmanager
def beginning(spec: ModelSpec, source: TensorMap | None, int8_cache: Int8Cache | None) -> Iterator[None]:
    """Starts work that needs neither kernels nor memory: checks a cache's files, or else reads ahead the
    first of the source's, whose headers are known to be right."""
    if int8_cache is not None:
        int8_cache.begin(spec.parts)
        yield
        return
    assert source is not None, "what has no cache has a source"
    with asked_early(source.checkpoint, source.parts):
        yield


def convert_all(
    source: TensorMap,
    layouts: Mapping[str, Layout],
    int8_cache: Int8Cache,
    report: Report = QUIET,
) -> int:
    """Write every part that the cache lacks, holding two at a time; returns how many that were. Damaged ones are made anew.

    CheckpointError as `load`; RunError where the disk does not take a part: what it has by then is kept.
    """
    ready = int8_cache.ready(part for part, _ in source.parts)
    missing = [(part, sources) for part, sources in source.parts if part.name not in ready and part.tensors]
    ready.clear()
    source_bytes = _source_bytes(source, missing)
    report.expect(source_bytes)
    memory = HostMemory("cpu", 2**62)
    crowded = _crowded(source_bytes + sum(layouts[part.name].nbytes for part, _ in missing))
    with reading(source.checkpoint, missing, crowded) as reader:
        for part, sources in missing:
            layout = layouts[part.name]
            arena = memory.arena(layout, part.name)
            convert(part, sources, layout, views(arena, layout), reader, report.moved, part.name)
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


def _reading(source: TensorMap | None, missing: Work, drop: bool) -> AbstractContextManager[Any]:
    """The reader of the rows of these parts; without a source none is missing, and nothing is read."""
    return nullcontext() if source is None else reading(source.checkpoint, missing, drop)


def _source_bytes(source: TensorMap | None, work: Work) -> int:
    """Bytes of the tensors that these parts are made from."""
    if source is None:
        return 0
    names = {s.name for _, sources in work for group in sources.values() for s in group}
    return sum(source.checkpoint.tensors[name].nbytes for name in names)


def _stored_bytes(work: Work, layouts: Mapping[str, Layout]) -> int:
    return sum(layouts[part.name].nbytes for part, _ in work)
