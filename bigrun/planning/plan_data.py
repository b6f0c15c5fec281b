"""The data of a plan: devices with their bytes, where each part is, and what was predicted."""

from dataclasses import dataclass
from typing import Any

from bigrun.model.storage import Storage


@dataclass(frozen=True)
class DevicePlan:
    """One device's account. The six kinds of bytes add up to `used_bytes`."""

    name: str  # cuda:0 and on, cpu, disk
    kind: str  # gpu, cpu or disk
    virtual: bool  # imagined: computed by the CPU
    budget_bytes: int  # what bigrun may take of it
    used_bytes: int
    free_bytes: int  # budget less used
    weights_bytes: int
    kv_cache_bytes: int  # keys and values of the whole context, of all sequences
    workspace_bytes: int  # buffers of the largest step
    staging_bytes: int  # slots for weights on their way: of a GPU, or of the host from the disk
    pinned_bytes: int  # of the host, page-locked: where streamed weights are copied from
    reserve_bytes: int  # what a driver takes for itself
    parts: tuple[str, ...]  # stored here
    card: str | None = None  # its name in the table of cards, where it is known


@dataclass(frozen=True)
class Placement:
    """Where one part is stored and computed, and where its keys and values live. `slice` is None for a whole part, else
    the experts [first, stop) of it that are meant."""

    part: str  # embed, blocks.0, blocks.0.experts, norm, head
    slice: tuple[int, int] | None
    stored_on: str  # the name of a device, as those below
    stored_as: str  # int8, 16bit or float32: the widest of its linears
    prefill_on: str
    decode_on: str
    kv_on: str | None  # of blocks alone
    weights_bytes: int
    kv_cache_bytes: int


@dataclass(frozen=True)
class Predicted:
    """Of decode at the end of the context (all sequences' tokens counted), of a prompt of `prompt_tokens`, and of a request
    that reads such a prompt and generates `new_tokens`, of every sequence of a batch. `given`, `measured`, `learned` and
    `assumptions` say what it rests on, for the devices that the plan uses, and `doubt` why it may be wrong."""

    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    request_seconds: float  # all sequences' prompts and answers, without the load
    load_seconds: float
    assumptions: tuple[str, ...]  # in words
    measured: tuple[str, ...] = ()  # in words, of this host
    prompt_tokens: int = 0  # of each sequence
    new_tokens: int = 0  # of each sequence
    given: tuple[str, ...] = ()  # in words, by the user's file
    learned: tuple[str, ...] = ()  # in words, from runs of this host
    doubt: str = ""  # of what the CPU computes: "not measured", "measured in a busy minute"


@dataclass(frozen=True)
class Streamed:
    """What the same rig would do if runs streamed the host's parts through a GPU, which they do not do yet: the speeds of
    a plan of its own."""

    through: tuple[str, ...]  # the GPUs
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    request_seconds: float


@dataclass(frozen=True)
class PlanData:
    """Everything a run needs to know of where things go. `unplaced` and `hint` are empty when it fits."""

    model: str  # its own name
    family: str  # llama, bloom, ...
    parameters: int  # weights of the model, a tied head not counted again
    fits: bool
    context_tokens: int  # of each sequence: prompt and answer
    batch: int  # sequences at a time
    prefill_chunk_tokens: int  # of a prompt, in one step
    storage: Storage  # the forms of weights, keys and values
    devices: tuple[DevicePlan, ...]  # GPUs first, then the CPU, then the disk
    placements: tuple[Placement, ...]  # in the order of execution
    predicted: Predicted | None  # None where it does not fit
    unplaced: tuple[str, ...] = ()  # parts that found no place
    hint: str = ""  # what is missing, and which single changes make it fit
    model_id: str = ""  # what the model was asked for by: a folder, a file, a hub id or a name
    revision: str | None = None  # branch, tag or commit of a hub model
    answer: dict[str, Any] | None = None  # of --solve, --what-if or --target
    runs: bool | str | None = None  # true, or why it cannot be run (by this version); null: it was not asked
    if_streamed: Streamed | None = None  # null where streaming would gain nothing
    warnings: tuple[str, ...] = ()  # budgets that this host does not have

    @property
    def weights(self) -> str:
        """The form of the weights: int8, 16bit or float32."""
        return self.storage.weights

    @property
    def kv(self) -> str:
        """The form of keys and values: 16bit or int8."""
        return self.storage.kv

    @property
    def head(self) -> str:
        """The form of the embedding and the head: int8 or 16bit."""
        return self.storage.head

    @property
    def skip(self) -> tuple[str, ...]:
        """Parts and linears that stay in 16 bits."""
        return self.storage.skip

    @property
    def part_names(self) -> tuple[str, ...]:
        """Every part, placed or not, once."""
        return tuple(dict.fromkeys([*(p.part for p in self.placements), *self.unplaced]))

    def placement(self, part: str) -> Placement:
        """The placement of a part; of experts in slices, the first.

        part: its name, such as blocks.0; StopIteration for one that has no place.
        """
        return next(placement for placement in self.placements if placement.part == part)

    @property
    def blocks(self) -> tuple[Placement, ...]:
        """The placements of all blocks, their experts' among them."""
        return tuple(placement for placement in self.placements if placement.part.startswith("blocks."))

    def device(self, name: str) -> DevicePlan:
        """The account of a device.

        name: such as cuda:0; StopIteration for one that the plan does not have.
        """
        return next(device for device in self.devices if device.name == name)
