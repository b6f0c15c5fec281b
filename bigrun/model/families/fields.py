"""A model's configuration, read with suspicion: every number has a type and a range, every complaint names its field."""

from collections.abc import Mapping
from typing import Any

from bigrun.errors import CheckpointError

# As torch, NumPy and the formats of tensors spell them. float64 is rounded to float32 as it is read.
DTYPES = {
    **dict.fromkeys(("float32", "float", "fp32", "f32", "float64", "double"), "float32"),
    **dict.fromkeys(("float16", "half", "fp16", "f16"), "float16"),
    **dict.fromkeys(("bfloat16", "bf16"), "bfloat16"),
}

MOST_LAYERS = 512  # the deepest published models have 126


class Fields:
    """Typed reads of a configuration. `where` is the file that messages name."""

    def __init__(self, values: Mapping[str, Any], where: str):
        if not isinstance(values, Mapping):
            raise CheckpointError(f"{where}: the configuration is not a JSON object")
        self.values, self.where = values, where

    def bad(self, name: str, why: str) -> CheckpointError:
        return CheckpointError(f"{self.where}: field '{name}' {why}")

    def get(self, *names: str) -> tuple[str, Any]:
        """The first of these names that is present and not null, with its value; (last name, None) if none is. Two spellings of
        one setting that say different things are refused: which of them transformers takes depends on the class."""
        said = [name for name in names if self.values.get(name) is not None]
        for other in said[1:]:
            if self.values[other] != self.values[said[0]]:
                raise self.bad(said[0], f"and field '{other}' say different things: take out the one that is wrong")
        return (said[0], self.values[said[0]]) if said else (names[-1], None)

    def integer(self, *names: str, default: int | None = None, low: int = 1, high: int = 2**24) -> int:
        name, value = self.get(*names)
        if value is None:
            if default is None:
                raise self.bad(name, "is missing")
            return default
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.bad(name, f"is {value!r:.40}, not a whole number")
        if not low <= value <= high:
            raise self.bad(name, f"is {str(value)[:30]}, not between {low} and {high}")
        return value

    def number(self, *names: str, default: float | None = None, low: float = 0.0, high: float = 1e12) -> float:
        name, value = self.get(*names)
        if value is None:
            if default is None:
                raise self.bad(name, "is missing")
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.bad(name, f"is {value!r:.40}, not a number")
        if not low < value <= high:
            raise self.bad(name, f"is {value!r:.40}, not above {low:g} and at most {high:g}")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        _, value = self.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.bad(name, f"is {value!r:.40}, not true or false")
        return value

    def unsaid(self, name: str, absent: int, null: int) -> int:
        """What a field without a value stands for: transformers takes its class's default only where the field is absent."""
        return null if name in self.values else absent

    def choice(self, *names: str, options: Mapping[str, Any], default: str | None = None) -> Any:
        name, value = self.get(*names)
        value = default if value is None else value
        if not isinstance(value, str) or value not in options:
            raise self.bad(name, f"is {value!r:.40}; bigrun knows {', '.join(sorted(options))}")
        return options[value]

    def dtype(self) -> str:
        """The published dtype of the weights. Where the configuration does not say it is float16, or bfloat16 if it declares
        quantised weights, as gpt-oss does."""
        name = "torch_dtype" if self.values.get("dtype") is None else "dtype"  # files say which they are
        value = self.values.get(name)
        if value is None:
            return "float16" if self.values.get("quantization_config") is None else "bfloat16"
        known = DTYPES.get(value.lower().rpartition(".")[2]) if isinstance(value, str) else None
        if known is None:
            raise self.bad(name, f"is {value!r:.40}; bigrun reads {', '.join(dict.fromkeys(DTYPES.values()))}")
        return known

    def refuse(self, name: str, allowed: tuple[Any, ...], why: str) -> None:
        """CheckpointError unless the field is absent or one of `allowed`."""
        value = self.values.get(name)
        if value is not None and value not in allowed:
            raise self.bad(name, f"is {value!r:.40}: {why}")
