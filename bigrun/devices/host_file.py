"""The host file: what bigrun measured of a host, and the rates fitted to its own runs there. An input of the planner.

`bigrun info` writes the roofs, `bigrun bench --learn` adds a run. The default file is host.json in bigrun's cache folder
(`BIGRUN_HOST` names another); it serves the machine that it names and no other, unless it is given by `--host`.
"""

import json
import math
import os
import tempfile
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from bigrun.devices.rates import Rates, cpu_rates
from bigrun.errors import CallError

VERSION = 1
LARGEST = 2**20
LONGEST = 200  # characters of a name
MOST = 1e21  # of anything in a second
RANGES: dict[str, tuple[float, float]] = {  # least and most; of all others 1 and MOST
    "disk_bytes_per_s": (0, MOST),  # 0: not measured
    "conversion_bytes_per_s": (0, MOST),
    "block": (0, 1),
    "overlap": (1, 16),
}
MAY_BE_INFINITE = ("link", "overlap")
VARIABLE = "BIGRUN_HOST"


@dataclass(frozen=True)
class Host:
    """`cpu`, `cores` and `kernels` say which machine; rates are bytes/s and multiply-adds/s; `copies` bytes/s between a
    GPU and host memory. `runs` are what `learned` was fitted to (planning/learn.py), as plain data."""

    cpu: str
    cores: int
    kernels: str
    measured_on: str
    read_bytes_per_s: float
    int8_products_per_s: float
    wide_products_per_s: float
    disk_bytes_per_s: float = 0.0
    copies: tuple[tuple[str, float], ...] = ()
    conversion_bytes_per_s: float = 0.0
    learned: Rates | None = None
    runs: tuple[Any, ...] = ()
    where: str = ""

    def rates(self) -> Rates:
        """The CPU's: learned if there were runs to learn from, else shares of the measured roofs."""
        if self.learned is not None:
            return self.learned
        roofs = self.read_bytes_per_s, self.int8_products_per_s, self.wide_products_per_s
        return cpu_rates(*roofs, f"measured on {self.measured_on}")

    @property
    def says(self) -> str:
        """A sentence for a plan."""
        rates, where = self.rates(), f"({self.where})" if self.where else ""
        how = f"learned from {len(self.runs)} runs of" if self.learned else "measured on"
        return (
            f"cpu: weights {rates.read / 1e9:.1f} GB/s, {rates.int8 / 1e9:.0f} G int8 multiply-adds/s, {how} this host, "
            f"{self.measured_on} {where}"
        ).rstrip()


NOWHERE = Path(os.devnull, "bigrun", "host.json")  # the file of a user without a home: never there, never written


def default_path() -> Path:
    """This host's own file: BIGRUN_HOST's, else that of the user's cache folder; NOWHERE where there is no such folder."""
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named)
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    if cache.startswith("~"):  # this user has no home
        return NOWHERE
    return Path(cache) / "bigrun" / "host.json"


def learning_path(host: str | Path | None) -> Path:
    """The host file to calibrate: the one of --host, or this host's own."""
    if host is not None and str(host).lower() == "none":
        raise CallError("--learn keeps what it learns in a host file: leave out --host none")
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
    return name, len(os.sched_getaffinity(0))


def find_host(path: str | Path | None = None) -> tuple[Host | None, str]:
    """(host, note): of a named file, or of this machine's own if there is one; "none" is no host.

    The note says why a default file was not used. CallError where a named file cannot be read.
    """
    if path is not None and not isinstance(path, str | Path):
        raise CallError(f"--host: {path!r:.40} is not the path of a file")
    if path is not None and str(path).lower() == "none":
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
    if not isinstance(values, dict) or values.pop("version", None) != VERSION:
        raise CallError(f"--host {path}: not a host file of version {VERSION}; `bigrun info` writes a new one")
    try:
        learned = values.get("learned")
        values["learned"] = None if learned is None else _checked(Rates, learned)
        values["copies"] = tuple(
            (str(name), float(_figure("copies", rate, float))) for name, rate in values.get("copies", ())
        )
        if not isinstance(values.get("runs", []), list):
            raise ValueError("runs is not a list")
        values["runs"] = tuple(values.get("runs", ()))
        return replace(_checked(Host, values), where=str(path))
    except (TypeError, ValueError, RecursionError) as error:
        raise CallError(f"--host {path}: {str(error)[:120]}; `bigrun info` writes a new one") from error


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


def write(host: Host, path: Path) -> None:
    """Atomically: a temporary file beside it, then a rename."""
    values = {"version": VERSION, **asdict(host)}
    del values["where"]
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
