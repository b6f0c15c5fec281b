"""A rig as a file, YAML or JSON: devices with their budgets and, where the user knows better, their speeds.

gpus:
  - card: RTX3090        # of the table of cards; or memory, bandwidth, int8 and fp16
    count: 2
    memory: 22GB         # what bigrun may take; default: all of the card
    link: pcie4x8        # its slot, or a rate such as 12GB/s; default: the card's own
cpu:
  memory: 64GB
  bandwidth: 80GB/s      # that all cores together read
disk:
  memory: 500GB
  bandwidth: 3GB/s
"""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from bigrun.devices.cards import Card, card
from bigrun.devices.links import link
from bigrun.devices.notes import GUESSED, SIZED, Note, card_memory, reached
from bigrun.devices.rates import ASSUMED_CPU, ASSUMED_DISK, ASSUMED_ROOFS, UNKNOWN_CARD, cpu_rates, gpu_rates
from bigrun.devices.rig import MOST_GPUS, Device, Rig, disk_rates
from bigrun.errors import CallError
from bigrun.sizes import SMALLEST, format_size, parse_size, with_unit

LARGEST = 2**18
DEPTH = 40  # of entries within entries: deeper is an attack, or a mistake
LONGEST = 100  # characters of a key or value
SLOWEST, FASTEST = 10**6, 10**15  # bytes/s of anything that bigrun would use
GPU_KEYS = ("card", "count", "memory", "bandwidth", "int8", "fp16", "link")
HOST_KEYS = ("memory", "bandwidth")
SPEEDS = {"bandwidth", "int8", "fp16", "link"}
OPERATIONS = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*T(?:OPS|FLOPS)?(?:/s)?", re.IGNORECASE | re.ASCII)


def read_rig(path: Path, virtual: bool = False) -> Rig:
    """The rig that a file describes; CallError names the file, the entry and the mistake."""
    values = _parse(path)
    where = f"--rig {path}"
    known = _keys(values, ("gpus", "cpu", "disk"), where, "the rig")
    given = Note("given", f"speeds as {path} gives them")
    entries = [] if known.get("gpus") is None else known["gpus"]
    if not isinstance(entries, list):
        raise CallError(f"{where}: gpus: write a list, one entry for each kind of card")
    gpus: list[Device] = []
    for i, entry in enumerate(entries):
        what = f"{where}: gpus[{i}]"
        entry = _keys(entry, GPU_KEYS, where, f"gpus[{i}]")
        gpu, count = _gpu(entry, what, (given,) if SPEEDS & set(entry) else ())
        if len(gpus) + count > MOST_GPUS:
            raise CallError(
                f"{what}: makes more than {MOST_GPUS} GPUs, the most that can be planned for; lower a count"
            )
        gpus += [replace(gpu, name=f"cuda:{len(gpus) + j}", virtual=virtual) for j in range(count)]
    if virtual and not gpus:
        raise CallError(f"{where}: --virtual needs gpus in the file: which GPUs to imagine")
    devices = [*gpus, _cpu(known.get("cpu"), where, given)]
    if known.get("disk") is not None:
        disk = _keys(known["disk"], HOST_KEYS, where, "disk")
        speed = _rate(disk["bandwidth"], f"{where}: disk: bandwidth") if "bandwidth" in disk else None
        rates = disk_rates(speed, "given") if speed else disk_rates(ASSUMED_DISK)
        devices.append(Device("disk", "disk", _size(disk, f"{where}: disk"), rates))
    return Rig(tuple(devices))


def _parse(path: Path) -> Any:
    where = f"--rig {path}"
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise CallError(
                f"{where}: larger than {LARGEST >> 10} KiB, which no rig file is; name the YAML or JSON file"
            )
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CallError(f"{where}: not UTF-8; a rig file is YAML or JSON") from error
    except (OSError, ValueError) as error:
        raise CallError(f"{where}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    form = "JSON" if path.suffix.lower() == ".json" else "YAML"
    try:
        values = _json(text) if form == "JSON" else _yaml(text)
    except CallError as error:
        raise CallError(f"{where}: {error}") from error
    except RecursionError as error:
        raise CallError(f"{where}: nested too deeply; a rig file has three levels") from error
    except Exception as error:  # yaml has its own tree of errors, and json's
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        why = getattr(error, "problem", None) or str(error).partition("\n")[0] or type(error).__name__
        raise CallError(f"{where}: {line}not {form} that bigrun reads: {why[:100]}") from error
    if values is None:
        raise CallError(f"{where}: is empty; describe gpus, cpu and disk, as in gpus: [{{card: RTX3090}}]")
    return values


def _json(text: str) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries: dict[str, Any] = {}
        for key, value in pairs:
            if key in entries:
                raise CallError(f"{key[:40]!r} is given twice; keep one of them")
            entries[key] = value
        return entries

    values = json.loads(text, object_pairs_hook=unique) if text.strip() else None
    level = [values]
    for _ in range(DEPTH):
        parts = [list(each.values()) if isinstance(each, dict) else each for each in level]
        level = [child for part in parts if isinstance(part, list) for child in part]
    if level:
        raise RecursionError
    return values


def _yaml(text: str) -> Any:
    """Plain values alone: neither aliases, which can multiply, nor tags that make objects, nor a key twice."""
    import yaml  # type: ignore[import-untyped]

    class Loader(yaml.SafeLoader):
        depth = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            event = self.peek_event()
            line = f"line {event.start_mark.line + 1}"
            if isinstance(event, yaml.AliasEvent):
                raise CallError(f"{line}: aliases (*name) are not read; write each entry out")
            if isinstance(event, yaml.ScalarEvent) and len(event.value) > LONGEST:
                raise CallError(f"{line}: {event.value[:40]!r}… is longer than any key or value; is a quote missing?")
            self.depth += 1
            if self.depth > DEPTH:
                raise CallError(f"{line}: nested too deeply; a rig file has three levels")
            node = super().compose_node(parent, index)
            self.depth -= 1
            return node

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen: set[str] = set()
            for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
                if key.value in seen:
                    raise CallError(f"line {key.start_mark.line + 1}: {key.value!r} is given twice; keep one of them")
                seen.add(key.value)
            return super().construct_mapping(node, deep)

    return yaml.load(text, Loader)


def _keys(entry: Any, known: tuple[str, ...], where: str, what: str) -> dict[str, Any]:
    """An object with known keys alone."""
    if not isinstance(entry, dict):
        raise CallError(f"{where}: {what}: write keys and values: {', '.join(known)}")
    for key in entry:
        if key not in known:
            import difflib

            near = difflib.get_close_matches(str(key)[:40].lower(), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the keys are {', '.join(known)}"
            raise CallError(f"{where}: {what}: no key {str(key)[:40]!r}; {hint}")
    return entry


def _size(entry: dict[str, Any], what: str) -> int:
    if "memory" not in entry:
        raise CallError(f"{what}: memory is missing: write memory: 64GB")
    try:
        size = parse_size(entry["memory"], f"{what}: memory")
    except CallError as error:
        raise CallError(str(error) if "write" in str(error) else f"{error}; write it as 64GB") from error
    if size and isinstance(entry["memory"], int) and size < SMALLEST:
        raise CallError(f"{what}: memory: {size} lacks a unit; write {with_unit(size)}")
    return size


def _gpu(entry: dict[str, Any], what: str, given: tuple[Note, ...]) -> tuple[Device, int]:
    """(a GPU, how many of it) of one entry."""
    count = entry.get("count", 1)
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MOST_GPUS:
        raise CallError(f"{what}: count is {count!r:.30}; write a number from 1 to {MOST_GPUS}")
    known: Card | None = None
    if "card" in entry:
        name = str(entry["card"]) if type(entry["card"]) is int else entry["card"]  # 3090
        if not isinstance(name, str) or len(name) > LONGEST:
            raise CallError(f"{what}: card is {name!r:.30}; write its name, such as RTX3090")
        known = card(name, what)
    budget = known.usable_bytes if known and "memory" not in entry else _size(entry, what)
    if budget == 0:
        raise CallError(f"{what}: a GPU of no memory holds nothing; leave it out")
    if known and budget > known.memory_bytes:
        has = format_size(known.memory_bytes)
        raise CallError(f"{what}: memory is more than the {has} of a {known.name}; write less, or leave it out")
    base = known or UNKNOWN_CARD
    speeds: dict[str, Any] = {}
    if "bandwidth" in entry:
        speeds["bandwidth"] = _rate(entry["bandwidth"], f"{what}: bandwidth")
    for name in ("int8", "fp16"):
        if name in entry:
            speeds[name] = _operations(entry[name], f"{what}: {name}")
    if "link" in entry:
        speeds["link"] = _link(entry["link"], f"{what}: link")
    whole = bool(known) or {"bandwidth", "int8", "fp16"} <= speeds.keys()
    if speeds:
        speeds["source"] = f"given for {what}" if whole else f"given for {what}, the rest assumed"
    notes = [*given]
    if known and "memory" not in entry:
        notes.append(card_memory(known))
    if speeds and not whole:
        notes.append(GUESSED)
    notes.append(SIZED if not speeds and not known else reached("given" if "bandwidth" in speeds else "published"))
    label = known.name if known and "memory" not in entry else ""
    rates = gpu_rates(replace(base, **speeds))
    return Device("", "gpu", budget, rates, False, label, known.name if known else "", tuple(notes)), count


def _cpu(entry: Any, where: str, given: Note) -> Device:
    if entry is None:
        return Device("cpu", "cpu", 0, ASSUMED_CPU)
    known = _keys(entry, HOST_KEYS, where, "cpu")
    if "bandwidth" not in known:
        return Device("cpu", "cpu", _size(known, f"{where}: cpu"), ASSUMED_CPU)
    read = _rate(known["bandwidth"], f"{where}: cpu: bandwidth")
    scale = read / ASSUMED_ROOFS[0]  # more memory channels come with more cores
    rates = cpu_rates(read, ASSUMED_ROOFS[1] * scale, ASSUMED_ROOFS[2] * scale, "given")
    return Device("cpu", "cpu", _size(known, f"{where}: cpu"), rates, notes=(given,))


def _rate(value: Any, what: str) -> float:
    """Bytes/s of "80GB/s" or a number."""
    text = value.strip().removesuffix("/s") if isinstance(value, str) else value
    try:
        rate = float(parse_size(text, what))
    except CallError as error:
        raise CallError(f"{what}: {value!r:.40} is not a rate; write it as 80GB/s") from error
    if not SLOWEST <= rate <= FASTEST:
        raise CallError(f"{what}: {rate:g} bytes/s is out of range; write it as 80GB/s")
    return rate


def _operations(value: Any, what: str) -> float:
    """Operations/s of "284TOPS"."""
    match = OPERATIONS.fullmatch(value.strip()) if isinstance(value, str) and len(value) < 30 else None
    if match is None or not 0.01 <= float(match[1]) < 1e6:
        raise CallError(f"{what}: {value!r:.30} is not a rate; write 284TOPS (10^12 operations a second)")
    return float(match[1]) * 1e12


def _link(value: Any, what: str) -> float:
    """Bytes/s of a slot's name or of a rate."""
    if isinstance(value, str) and not re.match(r"\s*[0-9.]+\s*[KMGT]?i?B", value, re.IGNORECASE):
        try:
            return link(value).usable
        except CallError as error:
            raise CallError(f"{what}: {error}") from error
    return _rate(value, what)
