"""What this process and this host are doing: memory in use, and how fast memory can be read."""

import threading
import time
from collections.abc import Callable


def host_bytes() -> int:
    """This process's anonymous and shared memory (RssAnon + RssShmem), in bytes. Mapped files are the page cache's."""
    with open("/proc/self/status") as status:
        return 1024 * sum(int(line.split()[1]) for line in status if line.startswith(("RssAnon", "RssShmem")))


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


def multiply_rate(rounds: int = 5) -> float:
    """Products/s of an activation and an int8 weight that all threads together reach in the exact mode, from the cache."""
    from bigrun_kernels.cpu import isa, threads

    threads.prepare()
    import numba

    from bigrun_kernels.cpu.roof import multiply

    team = numba.get_num_threads()
    form = isa.NUMBERS[isa.current()]
    multiply(form, team, 10)
    rates = []
    for _ in range(rounds):
        start = time.perf_counter()
        done = multiply(form, team, 3000)
        rates.append(done / (time.perf_counter() - start))
    return max(rates)


def read_bandwidth(nbytes: int = 512 * 2**20, rounds: int = 5) -> float:
    """Bytes/s that all threads together read from memory: the best of some passes over more than the caches hold."""
    import numpy as np

    from bigrun.memory import HostMemory
    from bigrun_kernels.cpu import threads

    threads.prepare()
    from bigrun_kernels.cpu.roof import read_all

    data = HostMemory("cpu", nbytes).take(nbytes, "workspace", "the bandwidth measurement").view(np.int64)
    data[:] = 1
    read_all(data[:4096])
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        read_all(data)
        times.append(time.perf_counter() - start)
    return nbytes / min(times)
