"""What the tensors of a checkpoint say where its configuration is wrong: whether the head is the embedding, and the dtype."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from bigrun.checkpoint.base import Checkpoint, TensorInfo
from bigrun.checkpoint.tensor_map import map_tensors, tied_tables
from bigrun.model.families.registry import BY_NAME
from bigrun.model.spec import ModelSpec

DTYPES = {"F64": "float32", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
ROWS_BYTES = 2**24  # compared at a time


def reconcile(checkpoint: Checkpoint, spec: ModelSpec) -> Mapping[str, Any]:
    """The configuration of a checkpoint, with what its tensors say in the place of what they contradict.

    A head that differs from the embedding is one of its own, whatever `tie_word_embeddings` says, as transformers has it; a
    note says so. The dtype is that of most of the weights' bytes. Reads headers, and of a tied model that is saved with both
    tables those, up to the first difference.
    """
    if BY_NAME[spec.family].sources is None:
        return checkpoint.config
    changed: dict[str, Any] = {}
    if (tables := tied_tables(checkpoint, spec)) and not _equal(checkpoint, *tables):
        changed["tie_word_embeddings"] = False
        embed, head = tables
        checkpoint.notes.append(
            f"{checkpoint.where}: tie_word_embeddings is true, but {head} is not {embed}: it is used as the head"
        )
    dtype = _dtype(checkpoint, spec)
    if dtype not in (None, spec.checkpoint_dtype):
        changed["dtype"] = dtype
    return {**checkpoint.config, **changed} if changed else checkpoint.config


def _dtype(checkpoint: Checkpoint, spec: ModelSpec) -> str | None:
    """The dtype of most bytes of the matrices that the model is made from; None of quantised ones."""
    total: Counter[str] = Counter()
    for _, part_sources in map_tensors(checkpoint, spec).parts:
        for source in (source for group in part_sources.values() for source in group):
            info = checkpoint.tensors.get(source.name)
            if info is not None and len(info.shape) > 1:
                total[info.dtype] += info.nbytes
    return DTYPES.get(total.most_common(1)[0][0]) if total else None


def _equal(checkpoint: Checkpoint, first: str, second: str) -> bool:
    """Whether two tensors hold the same numbers. Of what cannot be read here, or is of two shapes, it is taken to be so:
    whoever checks the tensors says what is wrong with them."""
    infos: tuple[TensorInfo, TensorInfo] = (checkpoint.tensors[first], checkpoint.tensors[second])
    if not checkpoint.paths or infos[0].shape != infos[1].shape or not all(info.readable for info in infos):
        return True
    if infos[0].place and infos[0] == infos[1]:  # one record of a torch file
        return True
    rows, row_bytes = infos[0].shape[0], max(info.nbytes for info in infos) // max(1, infos[0].shape[0])
    step = max(1, ROWS_BYTES // max(1, row_bytes))
    for start in range(0, rows, step):
        stop = min(rows, start + step)
        one, other = (checkpoint.rows(name, start, stop).floats() for name in (first, second))
        for name in (first, second):
            checkpoint.done(name, start, stop)
        if not np.array_equal(one, other, equal_nan=True):
            return False
    return True
