"""What the pickle of a state dict says, told without torch, without running any of it, and in little memory.

It is a program for a stack machine that calls functions by name. torch's own weights-only machine runs no stranger's
code, but what it allocates and how its numbers fit the file are not its matter. So the program is run here first, over
stand-ins, and passes only where it does nothing but put tensors, each within its own data, in a dict.
"""

import math
import pickletools
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MOST_OBJECTS = 40_000  # that a program makes: nine for each tensor
MOST_ON_STACK = 2**12  # torch.save puts a thousand entries of a dict there at a time
DEEPEST = 16
MOST_DIMENSIONS = 8
BOUND = 2**63  # of every number
ANEW = "save it anew: torch.save(torch.load(FILE, weights_only=True), FILE)"

ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1,
    "BOOL": 1, "C128": 16, "C64": 8, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1,
}  # fmt: skip
STORAGES = {
    "torch DoubleStorage": "F64", "torch FloatStorage": "F32", "torch HalfStorage": "F16", "torch BFloat16Storage": "BF16",
    "torch LongStorage": "I64", "torch IntStorage": "I32", "torch ShortStorage": "I16", "torch CharStorage": "I8",
    "torch ByteStorage": "U8", "torch BoolStorage": "BOOL", "torch ComplexDoubleStorage": "C128",
    "torch ComplexFloatStorage": "C64", "torch.storage UntypedStorage": "U8",
}  # fmt: skip
DTYPES = {
    "torch float64": "F64", "torch float32": "F32", "torch float16": "F16", "torch bfloat16": "BF16",
    "torch uint64": "U64", "torch uint32": "U32", "torch uint16": "U16", "torch uint8": "U8",
    "torch float8_e4m3fn": "F8_E4M3", "torch float8_e5m2": "F8_E5M2", "torch float8_e4m3fnuz": "F8_E4M3FNUZ",
    "torch float8_e5m2fnuz": "F8_E5M2FNUZ",
}  # fmt: skip
CALLED = frozenset(
    ("collections OrderedDict", *(f"torch._utils _rebuild_{what}" for what in ("tensor_v2", "tensor_v3", "parameter")))
)
NAMES = CALLED | STORAGES.keys() | DTYPES.keys()


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor lies: `first` is the byte of the file that its first entry begins at; `strides` in entries."""

    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    first: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class Record:
    first: int
    size: int


@dataclass(frozen=True, slots=True)
class _Storage:
    dtype: str
    record: Record


@dataclass(frozen=True, slots=True)
class _Name:
    """A function or type that the pickle refers to by name."""

    name: str


class _Ordered(dict):
    """Stands for an OrderedDict, the only object whose attributes a pickle may set."""


class Bad(Exception):
    """A defect of a file; the caller, which knows the file's name, adds it to the message."""


def read_program(program: bytes, records: Mapping[str, Record]) -> dict[str, StoredTensor]:
    """The tensors of a data.pkl by name. `records`: where the file's tensor data lie, by their keys."""
    return _state(_Machine(records).run(program))


def _state(value: Any) -> dict[str, StoredTensor]:
    if isinstance(value, dict) and value.keys() == {"state_dict"} and isinstance(value["state_dict"], dict):
        value = value["state_dict"]
    if not isinstance(value, dict):
        raise Bad(f"holds {_kind(value)}, not a dict of tensors; save the model's state_dict() alone")
    for name, tensor in value.items():
        if not isinstance(tensor, StoredTensor):
            raise Bad(f"{name[:80]!r} is {_kind(tensor)}, not a tensor; save the model's state_dict() alone")
    return value


def _kind(value: Any) -> str:
    kinds = {str: "text", int: "a number", bool: "a truth value", tuple: "a tuple", dict: "a dict", _Ordered: "a dict"}
    return kinds.get(type(value), f"a {type(value).__name__.strip('_')}")


def _lines(name: str) -> bytes:
    """A function's module and name as a pickle has them; pickletools reads escapes in them."""
    return name.replace(" ", "\n").encode() + b"\n"


class _Machine:
    """Runs data.pkl over stand-ins: nothing is imported and nothing is called."""

    def __init__(self, records: Mapping[str, Record]):
        self.records = records
        self.storages: dict[str, str] = {}
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.made = 0

    def run(self, program: bytes) -> Any:
        try:
            for opcode, argument, position in pickletools.genops(program):
                if opcode.name == "STOP":
                    if (position or 0) + 1 != len(program) or len(self.stack) != 1 or self.outer:
                        raise Bad("damaged: data.pkl does not end where it should; fetch it again")
                    return self.stack[0]
                if opcode.name == "GLOBAL" and not program.startswith(_lines(str(argument)), (position or 0) + 1):
                    raise Bad("data.pkl names a function with an escape, which unpicklers do not read")
                self._step(opcode.name, argument)
                if len(self.stack) > MOST_ON_STACK or self.made > MOST_OBJECTS or len(self.outer) > DEEPEST:
                    raise Bad("data.pkl makes more objects than a dict of tensors has")
        except (IndexError, KeyError, ValueError, struct.error, DeprecationWarning) as error:
            raise Bad(f"damaged: data.pkl is not a sound pickle ({str(error)[:60]}); fetch it again") from error
        raise Bad("damaged: data.pkl does not end; fetch it again")

    def _step(self, instruction: str, argument: Any) -> None:
        """One of the instructions that torch.save writes for a dict of tensors."""
        stack = self.stack
        match instruction:
            case "BINPUT" | "LONG_BINPUT":
                if argument > self.made:  # an unpickler with an array for its memo makes room for all before
                    raise Bad(f"data.pkl asks for {argument} places to remember {self.made} values in")
                self.memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])
            case "BININT" | "BININT1" | "BININT2" | "LONG1":
                if not 0 <= argument < BOUND:
                    raise Bad("data.pkl holds a number that is negative, or of more than 63 bits")
                stack.append(argument)
            case "NONE" | "NEWTRUE" | "NEWFALSE" | "EMPTY_TUPLE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}[instruction])
            case "BINUNICODE":
                self._make(argument)
            case "EMPTY_DICT":
                self._make({})
            case "GLOBAL":
                if argument not in NAMES:
                    raise Bad(f"holds code: {argument.replace(' ', '.')[:80]}; a dict of tensors needs none")
                self._make(_Name(argument))
            case "MARK":
                self.outer.append(stack)
                self.stack = []
            case "TUPLE":
                self._make(tuple(self._marked()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                self._make(tuple(reversed([stack.pop() for _ in range(int(instruction[-1]))])))
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                self._put([key, value])
            case "SETITEMS":
                self._put(self._marked())
            case "BUILD":
                state = stack.pop()
                if not isinstance(stack[-1], _Ordered) or not isinstance(state, dict) or state.keys() != {"_metadata"}:
                    raise Bad("data.pkl sets attributes, which no dict of tensors needs")
            case "BINPERSID":
                self._make(self._storage(stack.pop()))
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                self._make(self._call(function.name if isinstance(function, _Name) else "", arguments))
            case "PROTO":
                if argument != 2:
                    raise Bad(f"a pickle of protocol {argument}, where torch.save writes 2; {ANEW}")
            case _:
                raise Bad(f"data.pkl holds the instruction {instruction}, which no dict of tensors needs")

    def _make(self, value: Any) -> None:
        self.made += 1
        self.stack.append(value)

    def _marked(self) -> list[Any]:
        values, self.stack = self.stack, self.outer.pop()
        return values

    def _put(self, entries: list[Any]) -> None:
        target = self.stack[-1]
        for key, value in zip(entries[::2], entries[1::2], strict=True):
            if not isinstance(target, dict) or not isinstance(key, str):
                raise Bad(f"data.pkl has {_kind(key)} for a name; save the model's state_dict() alone")
            target[key] = value

    def _call(self, name: str, arguments: Any) -> Any:
        match name.rpartition("_rebuild_")[2], arguments:
            case "collections OrderedDict", ():
                return _Ordered()
            case "tensor_v2", (_Storage() as storage, first, shape, strides, bool(), _Ordered()):
                return _tensor(storage, storage.dtype, first, shape, strides)
            case "tensor_v3", (_Storage() as storage, first, shape, strides, bool(), _Ordered(), _Name() as dtype):
                return _tensor(storage, DTYPES[dtype.name], first, shape, strides)
            case "parameter", (StoredTensor() as tensor, bool(), _Ordered()):
                return tensor
        raise Bad(f"data.pkl calls {(name.replace(' ', '.') or 'what is no function')!r} in a way that torch does not")

    def _storage(self, persistent_id: Any) -> _Storage:
        match persistent_id:
            case "storage", _Name(name=kind), str(key), str(), int(count) if kind in STORAGES and key in self.records:
                dtype, record = STORAGES[kind], self.records[key]
                # torch makes a storage once, as it is first named
                if record.size == count * ITEM_BYTES[dtype] and self.storages.setdefault(key, kind) == kind:
                    return _Storage(dtype, record)
                raise Bad(f"tensor data {key[:40]!r} has {record.size} bytes, data.pkl says {count} entries of {dtype}")
        raise Bad("data.pkl names tensor data that is not in the file")


def _tensor(storage: _Storage, dtype: str, first: Any, shape: Any, strides: Any) -> StoredTensor:
    """Describes a tensor; refuses one that reaches beyond its storage, or repeats entries of it."""
    sound = type(shape) is tuple and type(strides) is tuple and len(shape) == len(strides) <= MOST_DIMENSIONS
    if not sound or not all(type(number) is int for number in (first, *shape, *strides)):
        raise Bad("data.pkl makes a tensor in a way that torch does not")
    item, count = ITEM_BYTES[dtype], math.prod(shape)
    reach = sum((extent - 1) * stride for extent, stride in zip(shape, strides, strict=True)) + 1 if count else 0
    if max(first + reach, count) * item > storage.record.size:
        raise Bad(f"a tensor of shape {list(shape)} is larger than the {storage.record.size} bytes of its data")
    return StoredTensor(dtype, shape, strides, storage.record.first + first * item)
