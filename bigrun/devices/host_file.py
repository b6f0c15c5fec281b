"""The host file: what bigrun measured of a host, and the rates fitted to its own runs there. An input of the planner.

`bigrun info` writes the roofs, `bigrun bench --learn` adds a run. The default file is host.json in bigrun's cache folder
(`BIGRUN_HOST` names another, or says none); it serves the machine that it names and no other, unless it is given by `--host`.

Version 2 says of each figure how it was measured (noise.py), and keeps what a load takes as fixed seconds and rates by form. Of
version 1, the rate of conversion is left out: it had the fixed seconds of whatever run in it.
"""

import contextlib
import fcntl
import json
import math
import os
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from bigrun.devices.noise import Noise
from bigrun.devices.rates import ASSUMED_LOADS, Rates, bounded, cpu_rates, low_roofs
from bigrun.errors import CallError
from bigrun_kernels.cpu.cgroups import usable_cpus

VERSION, OLDEST = 2, 1
LARGEST = 2**20
LONGEST = 200  # characters of a name
MOST = 1e21  # of anything in a second
RANGES: dict[str, tuple[float, float]] = {  # least and most; of all others 1 and MOST
    "disk_bytes_per_s": (0, MOST),  # 0: not measured
    "start_seconds": (0, 3600),  # 0: not measured
    "repeats": (0, 10**6),
    "spread": (0, 1),
    "foreign_cpu_share": (0, 1),
    "block": (0, 1),
    "overlap": (1, 16),
}
MAY_BE_INFINITE = ("link", "overlap")
VARIABLE = "BIGRUN_HOST"
# What is measured; the first three serve every prediction of the CPU.
ROOFS = ("read_bytes_per_s", "int8_products_per_s", "wide_products_per_s")
FIGURES = (*ROOFS, "disk_bytes_per_s", "copies")
BUSY = "measured in a busy minute"


@dataclass(frozen=True)
class Host:
    """`cpu`, `cores` and `kernels` say which machine; rates are bytes/s and multiply-adds/s; `copies` bytes/s between a
    GPU and host memory. `noise`: how a figure of FIGURES was measured. `start_seconds` and `loads` (form → bytes/s) are what
    loads take, `runs` what `learned` was fitted to (planning/learn.py), as plain data."""

    cpu: str
    cores: int
    kernels: str
    measured_on: str
    read_bytes_per_s: float
    int8_products_per_s: float
    wide_products_per_s: float
    disk_bytes_per_s: float = 0.0
    copies: tuple[tuple[str, float], ...] = ()
    noise: tuple[tuple[str, Noise], ...] = ()
    start_seconds: float = 0.0
    loads: tuple[tuple[str, float], ...] = ()
    learned: Rates | None = None
    runs: tuple[Any, ...] = ()
    where: str = ""

    def rates(self) -> Rates:
        """The CPU's: learned if there were runs to learn from, near the measured roofs; else shares of these."""
        roofs = cpu_rates(*self.roofs, f"measured on {self.measured_on}")
        return roofs if self.learned is None else bounded(self.learned, roofs)

    @property
    def roofs(self) -> tuple[float, float, float]:
        """Bytes/s read, int8 and 16-bit multiply-adds/s, as measured; of a busy minute no less than is assumed of a CPU that
        was not measured, as a disturbance only takes away."""
        read, int8, wide = (
            max(getattr(self, name), low) if name in self.busy else getattr(self, name)
            for name, low in zip(ROOFS, low_roofs(self.cores), strict=True)
        )
        return read, int8, wide

    @property
    def busy(self) -> dict[str, str]:
        """The figures that were measured in a busy minute, each with the reason."""
        return {name: noise.busy for name, noise in self.noise if noise.busy}

    @property
    def busy_measuring(self) -> str:
        """What disturbed the measuring of the CPU's figures; "" if nothing did. Only this does measuring again mend."""
        return next((self.busy[name] for name in ROOFS if name in self.busy), "")

    @property
    def busy_roof(self) -> str:
        """Why the CPU's figures are not believed, measured or learned; "" if they are."""
        runs = [str(run.get("busy", "")) for run in self.runs if isinstance(run, dict)]
        return self.busy_measuring or (runs[-1] if self.learned and runs and all(runs) else "")

    @property
    def assumes_read(self) -> bool:
        """Whether too little memory was available to measure how fast it is read."""
        return any(name == "read_bytes_per_s" and not noise.repeats for name, noise in self.noise)

    @property
    def says(self) -> str:
        """A sentence for a plan."""
        rates, where = self.rates(), f"({self.where})" if self.where else ""
        how = f"learned from {len(self.runs)} runs of" if self.learned else "measured on"
        busy = f"; {BUSY}: {self.busy_roof}" if self.busy_roof else ""
        if self.assumes_read:
            busy += "; reading was not measured: too little memory was available"
        return (
            f"cpu: weights {rates.read / 1e9:.1f} GB/s, {rates.int8 / 1e9:.0f} G int8 multiply-adds/s, {how} this host, "
            f"{self.measured_on} {where}"
        ).rstrip() + busy


def is_none(host: str | Path | None) -> bool:
    """Whether no host file is wanted: --host none, or BIGRUN_HOST=none where none is named."""
    named = os.environ.get(VARIABLE, "") if host is None else host
    return str(named).lower() == "none"


NOWHERE = Path(os.devnull, "bigrun", "host.json")  # the file of a user without a home: never there, never written


def default_path() -> Path:
    """This host's own file: BIGRUN_HOST's, else that of the user's cache folder; NOWHERE where there is no such folder, or
    BIGRUN_HOST is none."""
    named = os.environ.get(VARIABLE)
    if named:
        return NOWHERE if is_none(None) else Path(named)
    folder = cache_folder()
    return NOWHERE if folder is None else folder / "host.json"


def cache_folder() -> Path | None:
    """bigrun's folder in the user's cache folder, which need not be there; None for a user without a home."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return None if cache.startswith("~") else Path(cache) / "bigrun"


def learning_path(host: str | Path | None) -> Path:
    """The host file to calibrate: the one of --host, or this host's own."""
    if is_none(host):
        none = f"{VARIABLE}=none" if host is None else "--host none"
        raise CallError(f"--learn keeps what it learns in a host file: leave out {none}")
    path = Path(host) if host else default_path()
    if path == NOWHERE:
        raise CallError("--learn: this user has no home to keep a host file in: give --host FILE")
    return path


def machine() -> tuple[str, int]:
    """(CPU model, cores that this process may use): what a host file is recognised by."""
    import platform

    try:
        with open("/proc/cpuinfo") as lines:
            name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.machine()
    return name, usable_cpus()


def find_host(path: str | Path | None = None) -> tuple[Host | None, str]:
    """(host, note): of a named file, or of this machine's own if there is one; "none" is no host.

    The note says why a default file was not used. CallError where a named file cannot be read.
    """
    if path is not None and not isinstance(path, str | Path):
        raise CallError(f"--host: {path!r:.40} is not the path of a file")
    if is_none(path):
        return None, ""
    if path is not None:
        return read(Path(path)), ""
    file = default_path()
    if not os.path.isfile(file):
        return None, ""
    try:
        host = read(file)
    except CallError as error:
        return None, f"{error} (not used)"
    if (host.cpu, host.cores) != machine():
        return None, f"{file} is of another machine ({host.cpu}, {host.cores} cores): run `bigrun info` here"
    return host, ""


def read(path: Path) -> Host:
    """A host file; CallError says what is wrong with it."""
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise CallError(f"--host {path}: larger than a host file can be; `bigrun info` writes a new one")
        values = json.loads(data.decode("utf-8"))
    except OSError as error:
        raise CallError(f"--host {path}: cannot be read: {error.strerror}; `bigrun info` writes one") from error
    except (ValueError, RecursionError) as error:
        raise CallError(f"--host {path}: not JSON; `bigrun info` writes a new one") from error
    version = values.pop("version", None) if isinstance(values, dict) else None
    if type(version) is not int or not OLDEST <= version <= VERSION:
        raise CallError(
            f"--host {path}: not a host file of version {OLDEST} or {VERSION}; `bigrun info` writes a new one"
        )
    if version == OLDEST:
        values.pop("conversion_bytes_per_s", None)
    try:
        learned = values.get("learned")
        values["learned"] = None if learned is None else _checked(Rates, learned)
        values["copies"] = tuple(
            (str(name), float(_figure("copies", rate, float))) for name, rate in values.get("copies", ())
        )
        values["noise"] = tuple(
            (name, _checked(Noise, made)) for name, made in _named(values.get("noise", {}), FIGURES, "noise")
        )
        values["loads"] = tuple(
            (name, float(_figure("loads", rate, float)))
            for name, rate in _named(values.get("loads", {}), ASSUMED_LOADS, "loads")
        )
        if not isinstance(values.get("runs", []), list):
            raise ValueError("runs is not a list")
        values["runs"] = tuple(values.get("runs", ()))
        return replace(_checked(Host, values), where=str(path))
    except (TypeError, ValueError, RecursionError) as error:
        raise CallError(f"--host {path}: {str(error)[:120]}; `bigrun info` writes a new one") from error


def _named(values: Any, known: Collection[str], what: str) -> list[tuple[str, Any]]:
    """The items of an object with known keys; ValueError for anything else."""
    if not isinstance(values, dict) or not all(name in known for name in values):
        raise ValueError(f"{what} is not an object of {', '.join(known)}")
    return list(values.items())


def _checked(kind: Any, values: dict[str, Any]) -> Any:
    """A dataclass of its fields; ValueError for a figure that is none, or that nothing can be divided by."""
    made = kind(**values)
    for known in fields(kind):
        value = getattr(made, known.name)
        if known.type in (float, int):
            _figure(known.name, value, known.type)
        if known.type is str and not (isinstance(value, str) and value.isprintable() and len(value) <= LONGEST):
            raise ValueError(f"{known.name} is {value!r:.40}, not a text")
    return made


def _figure(name: str, value: Any, kind: type) -> Any:
    """The value if it is a figure of that name: a rate that steps can be divided by, a count, seconds or an exponent."""
    fits = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    least, most = RANGES.get(name, (1, MOST))
    if not fits or not (least <= value <= most or (value == math.inf and name in MAY_BE_INFINITE)):
        raise ValueError(f"{name} is {value!r:.40}, not a figure from {least} to {most:g}")
    return value


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keeps other processes that ask for it from this host file, so that what is read from it is still so when it is written.
    OSError if its folder cannot be written; on a file system without locks nobody is kept from it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("a") as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write(host: Host, path: Path) -> None:
    """Atomically: a temporary file beside it, then a rename."""
    values = {"version": VERSION, **asdict(host)}
    del values["where"]
    values |= {"noise": dict(values["noise"]), "loads": dict(values["loads"])}
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(values, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
