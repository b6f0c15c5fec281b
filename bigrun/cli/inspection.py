"""`bigrun inspect`: what a checkpoint holds and what is wrong with it, from its headers alone. No weight is read."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

from bigrun.checkpoint.base import Checkpoint, Limits, TensorInfo
from bigrun.checkpoint.tensor_map import map_tensors, problems
from bigrun.errors import BigrunError, CallError, CheckpointError
from bigrun.execute.supported import why_not_executable
from bigrun.loading.conversion_folder import Conversion
from bigrun.loading.open import ModelFiles, model_spec, open_files, open_model
from bigrun.model.families.registry import spec_from_config
from bigrun.model.resolve import Model, resolve
from bigrun.model.spec import ModelSpec
from bigrun.planning.ledger import Ledger
from bigrun.planning.options import PlanOptions
from bigrun.sizes import format_size

MOST_PROBLEMS = 20
UNKNOWN = 8192  # tensors that are looked at of a model whose configuration does not say what it is


@dataclass(frozen=True)
class Inspection:
    """`dtypes`: name → parameters; `bytes` of tensors in the files; `int8_bytes` as bigrun would hold them; `problems` in
    the order in which a load would meet them."""

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

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def inspect(path: str, revision: str | None = None) -> Inspection:
    """What a folder, a .gguf file, a catalog name or a hub id holds. CallError where there is nothing of that name; whatever
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
    elif spec is not None and opened is not None and tensors:
        wrong += _unfit(opened, spec)
    tokenizer = _tokenizer(opened, wrong)
    dtypes: Counter[str] = Counter()
    for info in tensors.values():
        dtypes[info.dtype] += prod(info.shape)
    return Inspection(
        path=path,
        format="unknown" if opened is None else opened.format,
        family=spec.family if spec else None,
        parameters=spec.parameters if spec else None,
        context_tokens=spec.context_limit if spec else None,
        dtypes=dict(sorted(dtypes.items())),
        tensors=len(tensors),
        files=files,
        bytes=sum(info.nbytes for info in tensors.values()) or sum(files.values()),
        int8_bytes=_int8_bytes(spec),
        tokenizer=tokenizer,
        problems=tuple(dict.fromkeys(wrong)),
    )


def _of_hub(model: Model, path: str, revision: str | None) -> Inspection:
    """A hub model, by its configuration and the headers of its files; nothing of its weights is fetched."""
    from bigrun.checkpoint.hub.download import needed
    from bigrun.checkpoint.hub.headers import headers

    if model.repo is None:
        raise CallError(f"{path}: a name for planning alone; there are no files to look into")
    listing = needed(model.repo, revision)
    wrong: list[str] = []
    spec, hub_headers = None, None
    try:
        spec = model_spec(model, listing.commit)
        hub_headers = headers(model.repo, listing.commit)
    except CheckpointError as error:
        wrong.append(str(error))
    names = [name for name, _ in listing.files]
    return Inspection(
        path=path,
        format=f"{listing.weights} on the hub, commit {listing.commit[:12]}",
        family=spec.family if spec else None,
        parameters=spec.parameters if spec else None,
        context_tokens=spec.context_limit if spec else None,
        dtypes=dict(hub_headers.dtypes) if hub_headers else {},
        tensors=len(hub_headers.shapes) if hub_headers else 0,
        files={name: size for name, size in listing.files if name.endswith((".safetensors", ".bin"))},
        bytes=hub_headers.bytes if hub_headers else 0,
        int8_bytes=_int8_bytes(spec),
        tokenizer="tokenizer.json" if "tokenizer.json" in names else "none",
        problems=tuple(wrong),
    )


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


def _unfit(checkpoint: Checkpoint, spec: ModelSpec) -> list[str]:
    if why := why_not_executable(spec, 1):
        return [f"{checkpoint.where}: {why}"]
    messages = list(problems(map_tensors(checkpoint, spec)))
    if len(messages) > MOST_PROBLEMS:
        messages = [*messages[:MOST_PROBLEMS], f"and {len(messages) - MOST_PROBLEMS} more"]
    return messages


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


def _tokenizer(opened: ModelFiles | None, wrong: list[str]) -> str:
    """What the tokenizer is, or why it cannot be read."""
    from bigrun.text.tokenizer import Tokenizer

    if opened is None:
        return "unknown"
    try:
        metadata = opened.metadata
        if metadata is None and not (opened.folder / "tokenizer.json").exists():
            return "none (text cannot be generated; bench runs without)"
        tokenizer = Tokenizer.from_gguf(metadata) if metadata is not None else Tokenizer.from_folder(opened.folder)
    except BigrunError as error:
        wrong.append(str(error))
        return "unreadable"
    chat = "with a chat template" if tokenizer.chat_template else "no chat template"
    return f"{tokenizer.vocab_size} tokens, {chat}"


def _int8_bytes(spec: ModelSpec | None) -> int | None:
    if spec is None:
        return None
    return sum(layout.nbytes for layout in Ledger(spec, PlanOptions(1)).layouts.values())


def describe(inspection: Inspection) -> str:
    """For a person."""
    rows = {"path": inspection.path, "format": inspection.format}
    if inspection.family is not None:
        size = f"{inspection.parameters / 1e9:.3g} billion parameters" if inspection.parameters else ""
        rows["model"] = f"{inspection.family}, {size}, {inspection.context_tokens} tokens of context"
    if inspection.dtypes:
        held = ", ".join(f"{count:,} {dtype}" for dtype, count in inspection.dtypes.items())
        rows["tensors"] = f"{inspection.tensors}, of {held}"
    rows["files"] = f"{len(inspection.files)}, {format_size(sum(inspection.files.values()))}"
    if inspection.int8_bytes is not None:
        rows["in int8"] = format_size(inspection.int8_bytes)
    rows["tokenizer"] = inspection.tokenizer
    lines = [str(BigrunError(f"{name:10} {text}")) for name, text in rows.items()]
    if not inspection.problems:
        return "\n".join([*lines, "problems   none that its headers show"])
    return "\n".join([*lines, "problems", *(f"  {BigrunError(problem)}" for problem in inspection.problems)])
