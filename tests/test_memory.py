"""A device's memory is counted before it is taken, refused beyond the budget, and given back when it is dropped."""

import numpy as np
import pytest

from bigrun.devices.host_memory import HostMemory, views
from bigrun.errors import BudgetExceeded, RunError
from bigrun.model.buffers import Buffer
from bigrun.model.layout import layout
from bigrun.model.spec import Part, Tensor
from bigrun.model.storage import Storage

PART = Part("blocks.0", (Tensor("qkv.weight", (8, 100), "linear"), Tensor("norm.weight", (100,), "small")))
LAYOUT = layout(PART, Storage(), "float16")


@pytest.fixture
def memory() -> HostMemory:
    return HostMemory("cuda:3", 10_000)


def test_the_whole_budget_can_be_taken_and_not_a_byte_more(memory: HostMemory) -> None:
    kept = [memory.take(9_999, "weights", "blocks.0"), memory.take(1, "weights", "blocks.1")]
    with pytest.raises(BudgetExceeded):
        memory.take(1, "weights", "blocks.2")
    assert (memory.used_bytes, memory.peak_bytes, len(kept)) == (10_000, 10_000, 2)


def test_the_error_names_the_device_what_it_was_for_the_need_and_what_is_left(memory: HostMemory) -> None:
    kept = memory.take(4_000, "weights", "blocks.0")
    with pytest.raises(BudgetExceeded) as caught:
        memory.take(7_000, "kv_cache", "the KV cache of blocks.7")
    message = str(caught.value)
    assert all(word in message for word in ("cuda:3", "the KV cache of blocks.7", "7.00 KB", "6.00 KB", "10.0 KB"))
    assert len(message.splitlines()) == 1
    assert kept.nbytes == 4_000


def test_a_refusal_leaves_the_account_as_it_was(memory: HostMemory) -> None:
    kept = memory.take(6_000, "weights", "blocks.0")
    with pytest.raises(BudgetExceeded):
        memory.take(5_000, "weights", "blocks.1")
    assert (memory.used_bytes, memory.peak_bytes, memory.by_kind) == (6_000, 6_000, {"weights": 6_000})
    assert memory.take(4_000, "weights", "blocks.1").nbytes == len(kept) - 2_000


def test_memory_the_system_does_not_have_is_an_error_that_names_the_flag_and_costs_nothing() -> None:
    memory = HostMemory("cpu", 10**18)
    with pytest.raises(RunError, match="cpu") as caught:
        memory.take(10**18, "weights", "blocks.0")
    assert not isinstance(caught.value, BudgetExceeded)
    assert (memory.used_bytes, memory.peak_bytes) == (0, 0)


def test_dropped_arrays_give_their_bytes_back_and_the_peak_stands(memory: HostMemory) -> None:
    first = memory.take(6_000, "weights", "blocks.0")
    second = memory.take(3_000, "workspace", "workspace")
    del first
    assert (memory.used_bytes, memory.peak_bytes) == (3_000, 9_000)
    assert memory.by_kind == {"weights": 0, "workspace": 3_000}
    del second
    assert memory.used_bytes == 0
    assert memory.take(10_000, "weights", "blocks.0").nbytes == 10_000


def test_a_view_keeps_its_arena(memory: HostMemory) -> None:
    view = memory.take(8_000, "weights", "blocks.0")[100:104].view(np.float32)
    assert memory.used_bytes == 8_000
    view[0] = 1.5
    with pytest.raises(BudgetExceeded):
        memory.take(2_001, "weights", "blocks.1")
    del view
    assert memory.used_bytes == 0


@pytest.mark.parametrize("nbytes", [0, 1, 4096, 2**21, 2**21 + 5])
def test_what_is_taken_is_zero_aligned_to_a_page_and_writable(nbytes: int) -> None:
    memory = HostMemory("cpu", 2**22)
    array = memory.take(nbytes, "weights", "blocks.0")
    assert (array.dtype, array.shape, memory.used_bytes) == (np.uint8, (nbytes,), nbytes)
    assert not array.any()
    assert nbytes == 0 or array.ctypes.data % 4096 == 0
    array[:] = 7


def test_two_memories_do_not_share_a_budget() -> None:
    one, two = HostMemory("cuda:0", 100), HostMemory("cuda:1", 100)
    kept = one.take(100, "weights", "blocks.0"), two.take(100, "weights", "blocks.1")
    assert (one.used_bytes, two.used_bytes, len(kept)) == (100, 100, 2)


def test_a_part_takes_what_its_layout_says_and_its_arrays_do_not_overlap() -> None:
    memory = HostMemory("cpu", LAYOUT.nbytes)
    arrays = views(memory.arena(LAYOUT, "blocks.0"), LAYOUT)
    assert memory.by_kind == {"weights": LAYOUT.nbytes}
    shapes = {name: (array.dtype, array.shape) for name, array in arrays.items()}
    assert shapes == {
        "qkv.weight": (np.int8, (1, 32, 16, 4)),
        "qkv.weight.scale": (np.float32, (8,)),
        "norm.weight": (np.float32, (100,)),
    }
    for value, array in enumerate(arrays.values(), 1):
        assert array.ctypes.data % 64 == 0
        array[:] = value
    assert [int(array.max()) for array in arrays.values()] == [1, 2, 3]
    assert [int(array.min()) for array in arrays.values()] == [1, 2, 3]


def test_a_part_beyond_the_budget_names_the_part() -> None:
    memory = HostMemory("cpu", LAYOUT.nbytes - 1)
    with pytest.raises(BudgetExceeded, match=r"^cpu: blocks\.0 needs"):
        memory.arena(LAYOUT, "blocks.0")


def test_buffers_take_the_sum_of_their_bytes_under_their_kind() -> None:
    buffers = (Buffer("k", "float16", (2, 3, 5)), Buffer("v", "float32", (7,)), Buffer("mask", "int8", (65,)))
    nbytes = sum(buffer.nbytes for buffer in buffers)
    assert nbytes == 64 + 64 + 128  # each in whole lines of 64 bytes
    memory = HostMemory("cpu", nbytes)
    arrays = memory.buffers(buffers, "kv_cache", "the KV cache of blocks.0")
    assert memory.by_kind == {"kv_cache": nbytes}
    assert {name: array.shape for name, array in arrays.items()} == {"k": (2, 3, 5), "v": (7,), "mask": (65,)}
    for value, array in enumerate(arrays.values(), 1):
        assert array.ctypes.data % 64 == 0
        array[:] = value
    assert [(int(array.min()), int(array.max())) for array in arrays.values()] == [(1, 1), (2, 2), (3, 3)]
