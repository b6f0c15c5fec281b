"""`bigrun convert`: the int8 cache of a model, without running it; what is there already is kept."""

import time
from pathlib import Path
from typing import Any

from bigrun.checkpoint.tensor_map import map_tensors
from bigrun.errors import CallError
from bigrun.execute.supported import why_not_executable
from bigrun.loading.conversion_folder import Conversion, check_out, open_int8_cache
from bigrun.loading.loader import convert_all
from bigrun.loading.open import open_model
from bigrun.model.resolve import resolve
from bigrun.model.spec import ModelSpec
from bigrun.planning.ledger import Ledger
from bigrun.progress import reporting
from bigrun.session.fetching import fetching
from bigrun.session.findings import Findings, examine
from bigrun.session.options import Options
from bigrun.session.warmup import warm_conversion
from bigrun.sizes import format_size


def convert_model(options: Options, out: Path) -> dict[str, Any]:
    """Write the conversion of a model to the folder `out`, which is a model by itself afterwards. Resumes an interrupted
    conversion; valid parts are kept.

    Errors are those of loading; RunError where the disk does not take it.
    """
    from bigrun_kernels.cpu import threads as pool

    started = time.perf_counter()
    model, revision, progress = resolve(options.model_id), options.revision, options.progress

    def before_weights(findings: Findings, hub_spec: ModelSpec) -> None:
        findings.check()
        options.storage.check_names(hub_spec)

    check_out(out)
    checkpoint, spec = open_model(model, revision, lambda: fetching(model, revision, None, progress, before_weights))
    if isinstance(checkpoint, Conversion):
        raise CallError(f"--model {options.model}: is an int8 conversion already")
    if why := why_not_executable(spec):
        raise CallError(f"{spec.name}: {why}")
    findings = examine(checkpoint, spec)
    findings.check()
    options.storage.check_names(spec)
    chosen = options.for_planning(spec)
    layouts = Ledger(spec, chosen).layouts
    tensor_map = map_tensors(checkpoint, spec)
    pool.use(options.arithmetic.threads)
    early = [*findings.warnings, *findings.text_problems]
    int8_cache = open_int8_cache(out, tensor_map, options.storage, layouts, model.source, early.append, itself=True)
    try:
        warm_conversion(spec, tensor_map, chosen, progress)
    except BaseException:
        int8_cache.close()
        raise
    with reporting(f"converting {spec.name}", progress) as report:
        for note in early:
            report.note(note)
        int8_cache.note = report.note
        try:
            converted = convert_all(tensor_map, layouts, int8_cache, report)
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


def describe(result: dict[str, Any]) -> str:
    """The result for a person."""
    return (
        f"{result['model']}: {result['parts']} parts, {format_size(result['bytes'])} of int8 in {result['out']}; "
        f"{result['converted_parts']} converted now, in {result['seconds']:.1f} s"
    )
