"""What this process and this host are doing: memory in use, and how fast it reads, multiplies and copies."""

import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

READ_BYTES = (
    512 * 2**20
)  # that the bandwidth of memory is measured with, where a quarter of what is available is so much
LEAST_READ = 64 * 2**20  # less than this may lie in the caches


def host_bytes() -> int:
    """This process's anonymous and shared memory (RssAnon + RssShmem), in bytes. Mapped files are the page cache's."""
    with open("/proc/self/status") as status:
        return 1024 * sum(int(line.split()[1]) for line in status if line.startswith(("RssAnon", "RssShmem")))


def disk_read_bytes() -> int | None:
    """Bytes that this process has had read from disks so far; None where the system does not tell. What was in memory
    already is not among them."""
    try:
        with open("/proc/self/io") as lines:
            return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))
    except (OSError, StopIteration, ValueError):
        return None


def freed_bytes() -> int:
    """Bytes that this process has freed and its C library keeps for later; 0 where it does not tell (glibc 2.33 does)."""
    import ctypes

    class Mallinfo2(ctypes.Structure):
        _fields_ = tuple((name, ctypes.c_size_t) for name in (*"abcdefgh", "fordblks", "keepcost"))  # of malloc.h

    try:
        mallinfo2 = ctypes.CDLL(None).mallinfo2
    except (OSError, AttributeError):
        return 0
    mallinfo2.restype = Mallinfo2
    return int(mallinfo2().fordblks)


def watch_memory(every_seconds: float = 0.01) -> Callable[[], int]:
    """Start sampling; the returned function stops and gives the peak of `host_bytes`."""
    peak, done = host_bytes(), threading.Event()

    def sample() -> None:
        nonlocal peak
        while not done.wait(every_seconds):
            peak = max(peak, host_bytes())

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()

    def stop() -> int:
        done.set()
        thread.join()
        return max(peak, host_bytes())

    return stop


def repeated(once: Callable[[], float], enough: float = 0.4, least: int = 5, most: int = 60) -> list[float]:
    """What `once` gives each time, until `enough` seconds have passed: short repeats, so that some meet a quiet moment."""
    results: list[float] = []
    started = time.perf_counter()
    while len(results) < least or (len(results) < most and time.perf_counter() - started < enough):
        results.append(once())
    return results


def warm(wide: bool) -> None:
    """Compiles, or loads, the kernels that measure, and starts their threads: nothing of that is measured then."""
    from bigrun_kernels.cpu import isa, threads

    threads.use(None)
    import numpy as np

    from bigrun_kernels.cpu.roof import multiply, read_all

    multiply(isa.NUMBERS[isa.current()], 1, 1)
    read_all(np.ones(4096, np.int64))
    if wide:
        from bigrun_kernels.cpu.float_dot import linear_float

        one = np.ones((1, 64), np.float32)
        linear_float(
            one, np.ones((1, 64), np.uint16), False, np.empty(0, np.float32), np.empty((1, 1), np.float32), False
        )


def multiply_rates() -> list[float]:
    """Products/s of an activation and an int8 weight that all threads together reach in the exact mode, from the cache."""
    from bigrun_kernels.cpu import isa, threads

    threads.prepare()
    import numba

    from bigrun_kernels.cpu.roof import multiply

    team = numba.get_num_threads()
    form = isa.NUMBERS[isa.current()]
    multiply(form, team, 10)

    def once() -> float:
        start = time.perf_counter()
        done = multiply(form, team, 3000)
        return done / (time.perf_counter() - start)

    return repeated(once)


def read_rates() -> list[float]:
    """Bytes/s that all threads together read from memory, in passes over more than the caches hold; none where too little
    memory is available for that."""
    import numpy as np

    from bigrun.devices.host_memory import HostMemory
    from bigrun.devices.probe import available_memory

    nbytes = min(READ_BYTES, available_memory()[0] // 4) // 4096 * 4096
    if nbytes < LEAST_READ:
        return []
    from bigrun_kernels.cpu import threads

    threads.prepare()
    from bigrun_kernels.cpu.roof import read_all

    data = HostMemory("cpu", nbytes).take(nbytes, "workspace", "the bandwidth measurement").view(np.int64)
    data[:] = 1
    read_all(data[:4096])

    def once() -> float:
        start = time.perf_counter()
        read_all(data)
        return nbytes / (time.perf_counter() - start)

    return repeated(once)


def wide_rates() -> list[float]:
    """Multiply-adds/s of a prompt with 16-bit weights: the kernel that --weights 16bit runs, from the cache."""
    import numpy as np

    from bigrun_kernels.cpu import threads

    threads.prepare()
    from bigrun_kernels.cpu.float_dot import linear_float

    rows, columns, tokens = 256, 1024, 64
    x = np.ones((tokens, columns), np.float32)
    weights, out = np.full((rows, columns), 0x3C00, np.uint16), np.empty((tokens, rows), np.float32)
    arguments = (x, weights, False, np.empty(0, np.float32), out, False)
    linear_float(*arguments)

    def once() -> float:
        start = time.perf_counter()
        for _ in range(4):
            linear_float(*arguments)
        return 4 * rows * columns * tokens / (time.perf_counter() - start)

    return repeated(once)


def read_bandwidth() -> float:
    """The best of `read_rates`; 0: not measured."""
    return max(read_rates(), default=0.0)


def multiply_rate() -> float:
    """The best of `multiply_rates`."""
    return max(multiply_rates())


def file_rates(folder: Path, nbytes: int = 256 * 2**20) -> list[float]:
    """Bytes/s that a file in this folder is read with, from the disk and not from the page cache; none where the folder
    cannot hold it. The file is written first, and removed."""
    try:
        handle, name = tempfile.mkstemp(dir=folder, prefix="bigrun-disk-")
    except OSError:
        return []
    try:
        piece = os.urandom(2**20)
        with os.fdopen(handle, "wb", buffering=0) as file:
            for _ in range(nbytes // len(piece)):
                file.write(piece)
            os.fsync(file.fileno())
        buffer = bytearray(8 * 2**20)

        def once() -> float:
            with open(name, "rb", buffering=0) as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                start = time.perf_counter()
                while file.readinto(buffer):
                    pass
                return nbytes / (time.perf_counter() - start)

        return repeated(once, enough=0, least=3)
    except OSError:
        return []
    finally:
        os.unlink(name)


def copy_rates(nbytes: int = 128 * 2**20) -> dict[str, list[float]]:
    """GPU → bytes/s of copies to it from pinned memory; empty without GPUs."""
    from bigrun.devices.probe import probe_gpus

    gpus = probe_gpus()
    if not gpus:
        return {}
    import torch

    source = torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)
    rates = {}
    for number in range(len(gpus)):
        target = torch.empty(nbytes, dtype=torch.uint8, device=f"cuda:{number}")
        times = []
        for _ in range(4):
            torch.cuda.synchronize(number)
            start = time.perf_counter()
            target.copy_(source, non_blocking=True)
            torch.cuda.synchronize(number)
            times.append(time.perf_counter() - start)
        rates[f"cuda:{number}"] = [nbytes / seconds for seconds in times[1:]]  # the first one maps pages
        del target
    return rates
