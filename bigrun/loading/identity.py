"""What a converted part was made from and how: equal identities mean equal bytes, whatever the plan."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash

from bigrun.checkpoint.base import Checkpoint
from bigrun.checkpoint.tensor_map import PartSources
from bigrun.model.layout import Layout
from bigrun.model.source import Source
from bigrun.model.spec import Part
from bigrun_kernels import lanes

VERSION = 1  # of the conversion: raised whenever the same source would become other bytes
ETAG = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")  # of git, and of its large files: hashes of the content
EDGE = 1 << 16  # bytes at a file's beginning and end that go into its fingerprint


def digest(value: Any) -> str:
    """128 bits of a JSON value (XXH3, xxhash.com), in hex."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return xxhash.xxh3_128_hexdigest(text.encode())


def fingerprint(path: Path) -> str:
    """Identifies the version of a source file without reading it all: the etag by which the hub's cache names
    its blobs, or else the size, the time of the last change, and a hash of both ends."""
    real = path.resolve()
    snapshot = path.parent.resolve().parent
    if snapshot.name == "snapshots" and real.parent == snapshot.parent / "blobs" and ETAG.fullmatch(real.name):
        return f"etag {real.name}"
    status = real.stat()
    with open(real, "rb") as stream:
        ends = stream.read(EDGE)
        stream.seek(max(0, status.st_size - EDGE))
        ends += stream.read(EDGE)
    return f"{status.st_size} bytes of {status.st_mtime_ns} {xxhash.xxh3_128_hexdigest(ends)}"


def fingerprints(checkpoint: Checkpoint) -> dict[str, str]:
    """File, as `TensorInfo.where` names it → its fingerprint."""
    return {str(path): fingerprint(path) for path in checkpoint.paths}


def part_identity(
    checkpoint: Checkpoint, part: Part, sources: PartSources, layout: Layout, prints: Mapping[str, str]
) -> str:
    """Of one part: the versions, the stored arrays, and for each tensor where its rows come from."""

    def origin(source: Source) -> list[Any]:
        info = checkpoint.tensors[source.name]
        scales = info.scales and [*info.scales, prints[info.scales[1]]]
        return [source.name, source.shape, source.grid, source.axes, info.dtype, prints[info.where], scales]

    made_from = {tensor.name: [origin(source) for source in sources[tensor.name]] for tensor in part.tensors}
    arrays = [[a.name, a.dtype, a.shape, a.offset] for a in layout.arrays]
    return digest([VERSION, lanes.VERSION, part.name, arrays, made_from])
