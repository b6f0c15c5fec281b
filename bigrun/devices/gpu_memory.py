"""Real GPUs in a run: torch devices, memory, and errors of the driver.

`BIGRUN_GPU=emulate` stands host memory in for the GPUs of a rig, so that all of this runs, slowly, where there is none:
for checking alone. Kernels are torch's own then, or Triton's interpreter's under TRITON_INTERPRET=1.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bigrun.devices.host_memory import NUMPY, views
from bigrun.errors import BudgetExceeded, CallError, RunError
from bigrun.model.buffers import Buffer
from bigrun.model.layout import ALIGNMENT, Layout, round_up
from bigrun.sizes import format_size
from bigrun_kernels import lanes

DTYPES = {
    "int8": torch.int8, "int32": torch.int32, "int64": torch.int64, "float16": torch.float16,
    "bfloat16": torch.bfloat16, "float32": torch.float32,
}  # fmt: skip
PIECE_BYTES = 8 * 2**20  # of a part that are on their way to a GPU at a time
OLDEST_DRIVER_NOTE = (
    "update the NVIDIA driver, or install a torch for its CUDA version; --gpus none leaves the GPUs out"
)


def emulated() -> bool:
    return os.environ.get("BIGRUN_GPU") == "emulate"


def torch_device(name: str) -> torch.device:
    """The torch device of "cuda:N"; CallError where there is no such GPU, RunError where the driver does not answer."""
    if emulated():
        return torch.device("cpu")
    number = int(name.partition(":")[2])
    try:
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    except RuntimeError as error:
        raise RunError(f"{name}: {first_line(error)}; {OLDEST_DRIVER_NOTE}") from error
    if number < count:
        return torch.device("cuda", number)
    if torch.version.cuda is None:
        why = "this torch is built without CUDA: install one that has it"
    elif count == 0 and os.path.exists("/proc/driver/nvidia"):
        why = f"the driver does not serve this torch (CUDA {torch.version.cuda}): {OLDEST_DRIVER_NOTE}"
    else:
        why = f"{count} GPU(s) are here"
    if (hidden := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        why += f", and CUDA_VISIBLE_DEVICES={hidden!r} hides any other"
    raise CallError(f"{name} cannot be run on: {why}; plan for it, add --virtual, or give --gpus none")


def first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:160]


@contextmanager
def device_errors(name: str, what: str) -> Iterator[None]:
    """Turns errors of a GPU, out of memory or lost, into a RunError of one line."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise RunError(_out_of_memory(name, what, error)) from error
    except RuntimeError as error:
        text = first_line(error)
        if "out of memory" in text.lower():
            raise RunError(_out_of_memory(name, what, error)) from error
        if "CUDA" in text or "cuda" in text or "cuBLAS" in text:
            raise RunError(
                f"{name} failed during {what} ({text}): the card was lost or its driver stopped; `nvidia-smi` tells; "
                "start again, or leave it out with --gpus"
            ) from error
        raise


def _out_of_memory(name: str, what: str, error: BaseException) -> str:
    have = ""
    if not emulated():
        try:
            free, whole = torch.cuda.mem_get_info(int(name.partition(":")[2]))
            have = f", {format_size(free)} of {format_size(whole)} are free now"
        except RuntimeError:
            have = ""
    return (
        f"{name}: {what} found no memory{have}: other processes took it since the plan was made; end them, or give a smaller "
        f"budget with --gpus or --max-memory"
    )


class GpuMemory:
    """One GPU's memory: everything that the plan needs, allocated in one piece before anything is loaded.

    So a card that has less than the plan says fails at once, and what a run takes is what was planned, to the byte.
    """

    is_gpu = True

    def __init__(self, name: str, budget_bytes: int, planned_bytes: int):
        self.name, self.budget_bytes = name, budget_bytes
        self.device = torch_device(name)
        self.planned_bytes = round_up(planned_bytes, ALIGNMENT)
        self.used_bytes = 0
        self.by_kind: dict[str, int] = {}
        what = f"the {format_size(planned_bytes)} of the plan"
        with device_errors(name, what):
            if self.device.type == "cuda":
                torch.cuda.empty_cache()  # what an earlier Runner gave back
                torch.cuda.reset_peak_memory_stats(self.device)
            self._check_free(planned_bytes, what)
            self._arena = torch.zeros(max(self.planned_bytes, 1), dtype=torch.uint8, device=self.device)

    def _check_free(self, nbytes: int, what: str) -> None:
        """Raises RunError if the card has less memory free; the message is clearer than the driver's would be."""
        if self.device.type != "cuda":
            return
        free, whole = torch.cuda.mem_get_info(self.device)
        if nbytes > free:
            raise RunError(
                f"{self.name} ({torch.cuda.get_device_name(self.device)}): {what} do not fit: {format_size(free)} of "
                f"{format_size(whole)} are free; other processes hold the rest: end them, or give a smaller budget with "
                f"--gpus or --max-memory: {format_size(int(free * 0.95)).replace(' ', '')} for this one"
            )

    @property
    def peak_bytes(self) -> int:
        """The most bytes that torch has reserved on the card; of an emulated GPU, the bytes handed out."""
        return self.used_bytes if self.device.type != "cuda" else torch.cuda.max_memory_reserved(self.device)

    def take(self, nbytes: int, kind: str, what: str) -> Tensor:
        """Allocates uint8 [nbytes] at a 64-byte boundary; BudgetExceeded beyond the planned bytes."""
        start = round_up(self.used_bytes, ALIGNMENT)
        if start + nbytes > self.planned_bytes:
            raise BudgetExceeded(
                f"{self.name}: {what} needs {format_size(nbytes)}, of the planned {format_size(self.planned_bytes)} only "
                f"{format_size(self.planned_bytes - start)} are left; the plan was wrong: please report it"
            )
        self.used_bytes = start + nbytes
        self.by_kind[kind] = self.by_kind.get(kind, 0) + nbytes
        return self._arena[start : start + nbytes]

    def buffers(self, buffers: Sequence[Buffer], kind: str, what: str) -> Mapping[str, Tensor]:
        """Allocates named buffers, filled with zeros."""
        arena = self.take(sum(b.nbytes for b in buffers), kind, what)
        result, offset = {}, 0
        for buffer in buffers:
            result[buffer.name] = _view(arena, offset, buffer.dtype, buffer.shape)
            offset += buffer.nbytes
        return result

    def part(self, layout: Layout, what: str) -> "GpuPart":
        """Room for the arrays of a part."""
        return GpuPart(self, layout, self.take(layout.nbytes, "weights", what))

    def upload(self, data: np.ndarray, layout: Layout) -> Mapping[str, Tensor]:
        """A part in its stored form (bytes, of a mapped file say) → its arrays here."""
        part = self.part(layout, layout.part)
        for name, array in views(data, layout).items():
            part.fill(name, array)
        return part.arrays

    def close(self) -> None:
        """Returns the memory to the driver, even if views of it are still held. Errors of a lost card are ignored: they were
        reported."""
        with suppress(RuntimeError):
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self._arena.untyped_storage().resize_(0)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()


class GpuPart:
    """A part's arrays on a GPU: int8 weights and tables row by row (lanes are the CPU's form), all else as stored."""

    def __init__(self, memory: GpuMemory, layout: Layout, arena: Tensor):
        self.layout, self._memory = layout, memory
        self.arrays = {a.name: _view(arena, a.offset, a.dtype, a.row_shape) for a in layout.arrays}

    def fill(self, name: str, stored: np.ndarray) -> None:
        """A whole array in its stored form, piece by piece."""
        with device_errors(self._memory.name, f"loading {self.layout.part}"):
            self._fill(name, stored)

    def _fill(self, name: str, stored: np.ndarray) -> None:
        stored_as, target = self.layout.by_name[name], self.arrays[name]
        if not stored_as.in_lanes:
            flat, source = target.view(-1), stored.reshape(-1)
            step = max(1, PIECE_BYTES // flat.element_size())
            for start in range(0, len(flat), step):
                flat[start : start + step].copy_(_tensor(source[start : start + step], stored_as.dtype))
            return
        panel_bytes = max(1, stored.nbytes // len(stored))
        step = max(1, PIECE_BYTES // panel_bytes)
        for start in range(0, len(stored), step):
            piece = _tensor(stored[start : start + step], stored_as.dtype).to(target.device)
            rows = piece.transpose(1, 2).reshape(len(piece) * lanes.ROWS, -1)
            target[start * lanes.ROWS : start * lanes.ROWS + len(rows)].copy_(rows)

    def put(self, name: str, where: np.ndarray, stored: np.ndarray) -> None:
        """Some rows of an array, row by row: they become its rows `where`."""
        with device_errors(self._memory.name, f"loading {self.layout.part}"):
            self._put(name, where, stored)

    def _put(self, name: str, where: np.ndarray, stored: np.ndarray) -> None:
        target = self.arrays[name]
        rows = _tensor(stored, self.layout.by_name[name].dtype).to(target.device)
        if len(where) and (np.diff(where) == 1).all():
            target[int(where[0]) : int(where[0]) + len(where)].copy_(rows)
        else:
            target.index_copy_(0, torch.from_numpy(where.astype(np.int64)).to(target.device), rows)


def _view(arena: Tensor, offset: int, dtype: str, shape: tuple[int, ...]) -> Tensor:
    kind = DTYPES[dtype]
    nbytes = prod(shape) * kind.itemsize
    return arena[offset : offset + nbytes].view(kind).view(shape)


def _tensor(array: np.ndarray, dtype: str) -> Tensor:
    """NumPy → torch without a copy; 16-bit floats, which NumPy holds as their bits, get their type back."""
    assert array.dtype == np.dtype(NUMPY[dtype]), f"{array.dtype} for {dtype}"
    with_numbers: Any = array.view(np.int16) if array.dtype == np.uint16 else array
    if not with_numbers.flags.writeable:
        with_numbers = with_numbers.copy()  # torch would warn that a mapped file is not to be written to
    tensor = torch.from_numpy(with_numbers)
    return tensor.view(DTYPES[dtype]) if array.dtype == np.uint16 else tensor
