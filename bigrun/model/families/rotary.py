"""Rotary embedding as configurations say it: how much of a head is turned, by which base, and how positions are scaled."""

from collections.abc import Mapping

from bigrun.model.families.fields import Fields
from bigrun.model.spec import Rope

SHARE = "partial_rotary_factor"
ROPES = ("default", "linear", "llama3", "longrope")


def rotary(
    fields: Fields, head_dim: int, rotated: float | None = None, theta_name: str = "rope_theta", share_name: str = SHARE,
    usual_theta: float = 10_000.0,
) -> Rope:  # fmt: skip
    """The rotary embedding of a configuration that says all of it, in both spellings: `rope_parameters` (transformers 5), or
    `rope_scaling` (4), which wins, as there, with the family's own fields beside it.

    `rotated` is the share of a head that is turned where nothing says so; None for a family that turns all of it and refuses
    any other. `theta_name` and `share_name` are what its older files call the base and the share, and
    `usual_theta` is the base where nothing says so.
    """
    key = "rope_scaling" if fields.values.get("rope_scaling") else "rope_parameters"
    scaling = fields.values.get(key)
    if scaling is not None and not isinstance(scaling, dict):
        raise fields.bad(key, "is not an object")
    inner = Fields(scaling or {}, f"{fields.where}: {key}")
    for kind, nested in inner.values.items():
        if isinstance(nested, Mapping):
            raise inner.bad(kind, "is a rotary embedding of some layers alone, which is not supported")
    if rotated is None:
        for each in (fields, inner):
            each.refuse(SHARE, (1, 1.0), "rotating a part of each head is not supported here")
    else:
        share = inner.number(SHARE, default=fields.number(share_name, default=rotated, high=1.0), high=1.0)
        head_dim = int(head_dim * share)
        if head_dim % 2 or not head_dim:
            raise fields.bad(share_name, f"turns {head_dim} entries of a head; rotary embedding needs an even number")
    theta = inner.number("rope_theta", default=fields.number(theta_name, default=usual_theta), high=1e12)
    kind = inner.choice("rope_type", "type", options={name: name for name in ROPES}, default="default")
    if kind == "default":
        return Rope(head_dim, theta)
    if kind == "longrope":
        return Rope(head_dim, theta, kind, factors=_factors(inner, head_dim))
    factor = inner.number("factor", high=1e6)
    if kind == "linear":
        return Rope(head_dim, theta, kind, factor)
    low, high = inner.number("low_freq_factor"), inner.number("high_freq_factor")
    if low >= high:
        raise inner.bad("high_freq_factor", f"is {high:g}, not above low_freq_factor, {low:g}")
    return Rope(
        head_dim,
        theta,
        kind,
        factor,
        low,
        high,
        _original_context(fields, inner),
    )


def _original_context(fields: Fields, inner: Fields) -> int:
    """Tokens that the model was first trained with, as transformers' `standardize_rope_params` finds them: beside the rotary
    settings, in them, or else the context."""
    name = "original_max_position_embeddings"
    if name in fields.values:
        return fields.integer(name, high=2**28)
    context = None if name in inner.values else fields.integer("max_position_embeddings", high=2**28)
    return inner.integer(name, default=context, high=2**28)


def _factors(inner: Fields, head_dim: int) -> tuple[float, ...]:
    """Longrope's factors, one for each rotated pair. They must be the same for short and long texts, and attention unscaled."""
    short, long = inner.values.get("short_factor"), inner.values.get("long_factor")
    if not isinstance(short, list) or len(short) != head_dim // 2:
        raise inner.bad("short_factor", f"is no list of {head_dim // 2} numbers, half as many as a head has entries")
    if long != short:
        raise inner.bad(
            "long_factor", "differs from short_factor: a rotation that depends on the text's length cannot be run"
        )
    factors = [Fields({"short_factor": factor}, inner.where).number("short_factor", high=1e12) for factor in short]
    if inner.number("attention_factor") != 1.0:
        raise inner.bad("attention_factor", "is not 1: scaled attention cannot be run")
    return tuple(factors)
