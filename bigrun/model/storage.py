"""Storage: the forms that a user chooses for weights and for the KV cache, and the form of each tensor that follows."""

from dataclasses import dataclass

from bigrun.errors import CallError
from bigrun.model.spec import ModelSpec, Tensor

FORMATS = ("int8", "16bit", "float32")
HEAD_FORMATS = ("int8", "16bit")
KV_FORMATS = ("16bit", "int8")


@dataclass(frozen=True)
class Storage:
    """Forms of the weights and of the KV cache: the options --weights, --head, --skip and --kv.

    CallError for a form that does not exist.
    """

    weights: str = "int8"  # linears: int8, 16bit (the checkpoint's own) or float32
    head: str = "int8"  # the embedding and the head: int8 or 16bit
    skip: tuple[str, ...] = ()  # parts and linears that stay in 16 bits: blocks.3, down, blocks.3.down
    kv: str = "16bit"  # keys and values: 16bit or int8

    def __post_init__(self) -> None:
        for option, value, formats in (
            ("weights", self.weights, FORMATS), ("head", self.head, HEAD_FORMATS), ("kv", self.kv, KV_FORMATS),
        ):  # fmt: skip
            if value not in formats:
                raise CallError(f"--{option} {value!r}: choose {', '.join(formats[:-1])} or {formats[-1]}")

    @property
    def kv_dtype(self) -> str:
        """float16 pages by default; float32 where the weights are, so that the checking path rounds nowhere."""
        return "int8" if self.kv == "int8" else "float32" if self.weights == "float32" else "float16"

    def form(self, part: str, tensor: Tensor, checkpoint_dtype: str) -> str:
        """The dtype that a tensor is stored in: 'int8', 'float16', 'bfloat16' or 'float32'."""
        if tensor.role == "small" or self.weights == "float32":
            return "float32"
        if tensor.role == "kept" and checkpoint_dtype == "float32":
            return "float32"
        # A float32 checkpoint's 16 bits are bfloat16: its range is float32's, so nothing overflows.
        sixteen = "float16" if checkpoint_dtype == "float16" else "bfloat16"
        wide = self.weights == "16bit" or tensor.role == "kept" or self.skips(part, tensor)
        if tensor.role == "table":
            return sixteen if wide or self.head == "16bit" else "int8"
        return sixteen if wide else "int8"

    def skips(self, part: str, tensor: Tensor) -> bool:
        """Whether --skip names this tensor: by its part (`blocks.3`), its linear (`down`), or both (`blocks.3.down`)."""
        stem = tensor.name.rpartition(".")[0] or tensor.name
        block = part.removesuffix(".experts")
        return any(name in (part, stem, f"{block}.{stem}") for name in self.skip)

    def check_names(self, spec: ModelSpec) -> None:
        """CallError if a name of --skip matches nothing in this model."""
        for name in self.skip:
            only = Storage(skip=(name,))
            if not any(only.skips(p.name, t) for p in spec.parts for t in p.tensors if t.role in ("linear", "table")):
                raise CallError(
                    f"--skip {name!r} matches nothing; name a part (blocks.3), a linear (qkv, out, up, down)"
                )
