"""`bigrun convert`: the int8 cache of a model, without running it; what is there already is kept."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bigrun.errors import CallError
from bigrun.execute.supported import why_not_executable
from bigrun.loading.conversion_folder import ConvertedCheckpoint, open_int8_cache
from bigrun.loading.loader import convert_all
from bigrun.loading.open import open_checkpoint
from bigrun.model.resolve import resolve
from bigrun.planning.ledger import Ledger
from bigrun.planning.options import make_options
from bigrun.progress import compiling, reporting
from bigrun.session.fetching import fetching
from bigrun.sizes import format_size


def convert_model(
    model: str, out: Path, head: str = "int8", skip: Sequence[str] = (), revision: str | None = None,
    threads: int | None = None, progress: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """Write the conversion of a model to the folder `out`, which is a model by itself afterwards. An interrupted one is gone
    on with; parts that are there and sound are not made again.

    Errors are those of loading; RunError where the disk does not take it.
    """
    from bigrun_kernels.cpu import compiled
    from bigrun_kernels.cpu import threads as pool

    started = time.perf_counter()
    named = resolve(model)
    checkpoint, spec = open_checkpoint(named, revision, lambda: fetching(named, revision, None, progress))
    if isinstance(checkpoint, ConvertedCheckpoint):
        raise CallError(f"--model {model}: is an int8 conversion already")
    if why := why_not_executable(spec, 1):  # a window is no hindrance: a run may have a shorter context
        raise CallError(f"{spec.name}: {why}")
    options = make_options(spec, None, 1, "int8", head, skip, "16bit")
    options.storage.check_names(spec)
    layouts = Ledger(spec, options).layouts
    pool.use(threads)
    source = named.repo or str(named.gguf or named.folder)
    with compiling(progress and not compiled("quantise")), reporting(spec.name, progress) as report:
        int8_cache = open_int8_cache(out, checkpoint, spec, options.storage, layouts, source, report.note, itself=True)
        try:
            converted = convert_all(checkpoint, spec, layouts, int8_cache, report)
        except KeyboardInterrupt:
            int8_cache.close()
            parts = sum(1 for layout in layouts.values() if layout.arrays)
            there = len(list(out.glob("*.safetensors")))
            raise KeyboardInterrupt(
                f"interrupted: {there} of {parts} parts are in {out}; the same command goes on from there"
            ) from None
        finally:
            int8_cache.close()
    nbytes = sum(layout.nbytes for layout in layouts.values())
    parts = sum(1 for layout in layouts.values() if layout.arrays)
    return {
        "model": spec.name, "out": str(out), "parts": parts, "converted_parts": converted, "bytes": nbytes,
        "seconds": time.perf_counter() - started,
    }  # fmt: skip


def describe(found: dict[str, Any]) -> str:
    """The result for a person."""
    return (
        f"{found['model']}: {found['parts']} parts, {format_size(found['bytes'])} of int8 in {found['out']}; "
        f"{found['converted_parts']} converted now, in {found['seconds']:.1f} s"
    )
