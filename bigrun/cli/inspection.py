"""`bigrun inspect`: what a checkpoint holds and what is wrong with it, from its headers: of weights, no more is read than
`session/findings.py` needs to tell whether a second table or a bias without a place is of use."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

from bigrun.checkpoint.base import Limits, TensorInfo
from bigrun.errors import BigrunError, CallError, CheckpointError
from bigrun.loading.conversion_folder import Conversion
from bigrun.loading.open import ModelFiles, open_files, open_model
from bigrun.model.families.registry import spec_from_config
from bigrun.model.resolve import Model, resolve
from bigrun.model.spec import ModelSpec
from bigrun.planning.ledger import Ledger
from bigrun.planning.options import PlanOptions
from bigrun.planning.words import count
from bigrun.session.findings import NO_TOKENIZER, Findings, examine
from bigrun.sizes import format_size

MOST_PROBLEMS = 20
UNKNOWN = 8192  # tensors that are looked at of a model whose configuration does not say what it is


@dataclass(frozen=True)
class Inspection:
    """`dtypes`: name → parameters; `bytes` of tensors in the files; `int8_bytes` as bigrun would hold them; `problems` in
    the order in which a load would meet them; `warnings`, what a run would say; `ignored`: tensor → why it is of no use."""

    path: str
    format: str
    family: str | None
    parameters: int | None
    context_tokens: int | None
    dtypes: dict[str, int]
    tensors: int
    files: dict[str, int]
    bytes: int
    int8_bytes: int | None
    tokenizer: str
    problems: tuple[str, ...]
    warnings: tuple[str, ...]
    ignored: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def inspect(path: str, revision: str | None = None) -> Inspection:
    """What a folder, a GGUF file, a catalog name or a hub id holds. CallError where there is nothing of that name; whatever
    else is wrong is among the problems."""
    model = resolve(path)
    if model.folder is None and model.gguf is None:
        return _of_hub(model, path, revision)
    wrong: list[str] = []
    opened, spec = _open(model, wrong)
    files: dict[str, int] = {}
    tensors: Mapping[str, TensorInfo] = {}
    try:
        if isinstance(opened, Conversion):
            files = _sizes(sorted(opened.folder.glob("*.safetensors")))
        elif opened is not None:
            tensors = opened.tensors
            files = _sizes(opened.paths)
    except BigrunError as error:
        wrong.append(str(error))
    except OSError as error:
        wrong.append(f"{error.filename}: cannot be read: {error.strerror}")
    if isinstance(opened, Conversion):
        wrong += _missing_parts(opened, spec)
    found = Findings()
    if opened is not None and spec is not None:
        try:
            found = examine(opened, spec, tensors=bool(tensors))
        except BigrunError as error:
            wrong.append(str(error))
    wrong += _all_of(found)
    return Inspection(
        path=path,
        format="unknown" if opened is None else opened.format,
        family=spec.family if spec else None,
        parameters=spec.parameters if spec else None,
        context_tokens=spec.context_limit if spec else None,
        dtypes=_dtypes(tensors),
        tensors=len(tensors),
        files=files,
        bytes=sum(info.nbytes for info in tensors.values()) or sum(files.values()),
        int8_bytes=_int8_bytes(spec),
        tokenizer=found.about_tokenizer,
        problems=tuple(dict.fromkeys(wrong)),
        warnings=found.warnings,
        ignored=dict(found.ignored),
    )


def _of_hub(model: Model, path: str, revision: str | None) -> Inspection:
    """A hub model, by its small files and the headers of the others; nothing of its weights is fetched."""
    from bigrun.checkpoint.hub.download import fetch_small, needed
    from bigrun.checkpoint.hub.headers import check
    from bigrun.session.fetching import examine_hub

    if model.repo is None:
        raise CallError(f"{path}: a name for planning alone; there are no files to look into")
    listing = needed(model.repo, revision)
    found, spec, wrong = Findings(), None, list[str]()
    tensors: Mapping[str, TensorInfo] = {}
    try:
        hub_model = examine_hub(model, listing.commit, fetch_small(listing, model.repo))
        found, spec, tensors = hub_model.findings, hub_model.spec, hub_model.files.tensors
        if tensors and not found.problems:
            check(spec, hub_model.files)
    except CheckpointError as error:
        wrong.append(str(error))
    return Inspection(
        path=path,
        format=f"{listing.weights} on the hub, commit {listing.commit[:12]}",
        family=spec.family if spec else None,
        parameters=spec.parameters if spec else None,
        context_tokens=spec.context_limit if spec else None,
        dtypes=_dtypes(tensors),
        tensors=len(tensors),
        files={name: size for name, size in listing.files if name in listing.weight_files},
        bytes=sum(info.nbytes for info in tensors.values()),
        int8_bytes=_int8_bytes(spec),
        tokenizer=found.about_tokenizer,
        problems=(*wrong, *_all_of(found)),
        warnings=found.warnings,
        ignored=dict(found.ignored),
    )


def _dtypes(tensors: Mapping[str, TensorInfo]) -> dict[str, int]:
    """Dtype → parameters, sorted."""
    dtypes: Counter[str] = Counter()
    for info in tensors.values():
        dtypes[info.dtype] += prod(info.shape)
    return dict(sorted(dtypes.items()))


def _all_of(found: Findings) -> list[str]:
    """The problems that are told: the first of very many, and the tokenizer's where there is one."""
    messages = list(found.problems)
    if len(messages) > MOST_PROBLEMS:
        messages = [*messages[:MOST_PROBLEMS], f"and {len(messages) - MOST_PROBLEMS} more"]
    return messages + ([] if found.about_tokenizer == NO_TOKENIZER else list(found.text_problems))


def _open(model: Model, wrong: list[str]) -> tuple[ModelFiles | None, ModelSpec | None]:
    """The files and their spec, as far as they can be had."""
    try:
        return open_model(model)
    except CheckpointError as error:
        wrong.append(str(error))
    try:
        opened = open_files(model)
    except CheckpointError:
        return None, None
    if not isinstance(opened, Conversion):
        opened.limits = Limits(UNKNOWN)
    try:
        return opened, spec_from_config(opened.config, model.name, opened.where)
    except CheckpointError:
        return opened, None


def _sizes(paths: Iterable[Path]) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in paths}


def _missing_parts(conversion: Conversion, spec: ModelSpec | None) -> list[str]:
    """Parts that a conversion lacks, by the manifest and by the configuration, and files that cannot be what they should."""
    from bigrun.loading.part_file import UNSUMMED, file_name, header

    folder, manifest = conversion.folder, conversion.manifest
    layouts = conversion.layouts(spec) if spec is not None else {}
    names = [name for name, layout in layouts.items() if layout.arrays] or list(manifest.parts)
    messages = [f"{folder}: its manifest has no part {name}" for name in names if name not in manifest.parts]
    gone = [name for name in names if not (folder / file_name(name)).is_file()]
    if gone:
        messages.append(f"{folder}: the conversion was not finished: {len(gone)} parts are missing, {gone[0]} first")
    for name in names:
        path = folder / file_name(name)
        if name in layouts and name not in gone:
            expected = len(header(layouts[name], "0" * 32, UNSUMMED)) + layouts[name].nbytes
            if path.stat().st_size != expected:
                messages.append(f"{path}: damaged: it has {path.stat().st_size} bytes, not {expected}")
    return messages[:MOST_PROBLEMS]


def _int8_bytes(spec: ModelSpec | None) -> int | None:
    if spec is None:
        return None
    return sum(layout.nbytes for layout in Ledger(spec, PlanOptions(1)).layouts.values())


def describe(inspection: Inspection) -> str:
    """For a person."""
    rows = {"path": inspection.path, "format": inspection.format}
    if inspection.family is not None:
        size = f"{count(inspection.parameters)} parameters" if inspection.parameters else ""
        rows["model"] = f"{inspection.family}, {size}, {inspection.context_tokens} tokens of context"
    if inspection.dtypes:
        held = ", ".join(f"{count:,} {dtype}" for dtype, count in inspection.dtypes.items())
        rows["tensors"] = f"{inspection.tensors}, of {held}"
    rows["files"] = f"{len(inspection.files)}, {format_size(sum(inspection.files.values()))}"
    if inspection.int8_bytes is not None:
        rows["in int8"] = format_size(inspection.int8_bytes)
    rows["tokenizer"] = inspection.tokenizer
    lines = [str(BigrunError(f"{name:10} {text}")) for name, text in rows.items()]
    if inspection.ignored:
        lines.append(str(BigrunError(f"ignored    {_why_ignored(inspection.ignored)}")))
    if inspection.warnings:
        lines += ["warnings", *(f"  {BigrunError(warning)}" for warning in inspection.warnings)]
    if not inspection.problems:
        return "\n".join([*lines, "problems   none that its headers show"])
    return "\n".join([*lines, "problems", *(f"  {BigrunError(problem)}" for problem in inspection.problems)])


def _why_ignored(ignored: Mapping[str, str]) -> str:
    """Tensors that are of no use, by why: how many, and one of them."""
    by_why: dict[str, list[str]] = {}
    for name, why in ignored.items():
        by_why.setdefault(why, []).append(name)
    groups = (
        f"{names[0][:80]}{f' and {len(names) - 1} more' if names[1:] else ''} ({why})" for why, names in by_why.items()
    )
    return "; ".join(groups)
