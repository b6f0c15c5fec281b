"""Plan: the planner's answer as frozen data, in and out of JSON."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from bigrun.errors import CallError
from bigrun.model.families.registry import device_map
from bigrun.model.storage import Storage
from bigrun.planning.plan_data import DevicePlan, Placement, PlanData, Predicted, Streamed


@dataclass(frozen=True)
class Plan(PlanData):
    """A plan that prints itself, goes into JSON and files and back, and gives accelerate's device map."""

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of `bigrun plan --json`; `unplaced` and `hint` only where the plan does not fit."""
        result: dict[str, Any] = {}
        for name, value in asdict(self).items():
            # the storage is one object in Python and four keys here, where its readers expect them
            result |= {"weights": value["weights"], "kv": value["kv"]} if name == "storage" else {name: value}
        result |= {"head": self.head, "skip": self.skip}
        if self.fits:
            del result["unplaced"], result["hint"]
        if self.answer is None:
            del result["answer"]
        return result

    def to_json(self, indent: int | None = 1) -> str:
        """`to_dict` as text.

        indent: spaces a level; None: all in one line.
        """
        return json.dumps(self.to_dict(), indent=indent)

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON. OSError where the file cannot be written.

        path: the file, which `load` and `bigrun generate --plan` read.
        """
        Path(path).write_text(self.to_json() + "\n", encoding="utf-8")

    @staticmethod
    def load(path: str | Path) -> "Plan":
        """Read a plan. CallError says what is wrong with the file.

        path: what `bigrun plan --json` printed or `save` wrote.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CallError(
                f"plan {path}: cannot be read: {getattr(error, 'strerror', None) or 'not UTF-8'}"
            ) from error
        try:
            return plan_from_json(text)
        except CallError as error:  # of a form that does not exist
            raise CallError(f"plan {path}: {error}; make it again with `bigrun plan --json`") from error
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise CallError(f"plan {path}: not a plan as `bigrun plan --json` prints it ({str(error)[:80]})") from error

    def to_device_map(self) -> dict[str, int | str]:
        """accelerate's form: module name → GPU number, "cpu" or "disk". Experts that are split are named by where most are."""
        most: dict[str, Placement] = {}
        for placement in self.placements:
            if placement.part not in most or placement.weights_bytes > most[placement.part].weights_bytes:
                most[placement.part] = placement
        return device_map(self.family, {part: placement.stored_on for part, placement in most.items()})

    def __str__(self) -> str:
        from bigrun.planning.report import plan_text  # rich is imported where a plan is shown

        return plan_text(self)


def plan_from_json(text: str) -> Plan:
    """The inverse of `Plan.to_json`."""
    values = json.loads(text)
    values["devices"] = tuple(DevicePlan(**_tuples(device)) for device in values["devices"])
    values["placements"] = tuple(Placement(**_tuples(placement)) for placement in values["placements"])
    if values["predicted"] is not None:
        values["predicted"] = Predicted(**_tuples(values["predicted"]))
    if values.get("if_streamed") is not None:  # which plans of earlier versions do not say
        values["if_streamed"] = Streamed(**_tuples(values["if_streamed"]))
    values = _tuples(values)
    values["storage"] = Storage(**{field.name: values[field.name] for field in fields(Storage) if field.name in values})
    return Plan(**{field.name: values[field.name] for field in fields(Plan) if field.name in values})


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
