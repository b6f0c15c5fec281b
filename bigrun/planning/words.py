"""The words for figures, parts and devices of a plan, which the table, the picture and the answers share."""

from bigrun.planning.plan_data import DevicePlan, PlanData, Predicted, Streamed


def cannot_run(plan: PlanData) -> str:
    """What this version cannot run of a plan that fits, to follow "cannot run yet: "; "" where it can, or nobody asked."""
    return plan.runs.replace(" can be planned but not run yet", "") if isinstance(plan.runs, str) and plan.fits else ""


def several(number: int, thing: str) -> str:
    """1 token, 2,048 tokens."""
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


def count(parameters: int) -> str:
    """176.2 B, 134.5 M."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6)):
        if parameters >= size:
            return f"{parameters / size:.4g} {unit}"
    return str(parameters)


def device_name(device: DevicePlan) -> str:
    """cuda:0, cuda:0 (virtual), cpu."""
    return f"{device.name} (virtual)" if device.virtual else device.name


def describe_parts(parts: tuple[str, ...]) -> str:
    """embed, blocks 0-8, experts 0-8, norm, head."""
    words: list[str] = []
    numbers: dict[str, list[int]] = {"blocks": [], "experts": []}
    for part in parts:
        kind, _, rest = part.partition(".")
        if kind != "blocks":
            words.append(part)
            continue
        number, _, experts = rest.partition(".")
        name = experts or kind
        if not numbers[name]:
            words.append(name)
        numbers[name].append(int(number))
    return ", ".join(f"{word} {_runs(numbers[word])}" if word in numbers else word for word in words) or "nothing"


def _runs(numbers: list[int]) -> str:
    """0-3, 5, 7-9."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(f"{first}-{last}" if first < last else f"{first}" for first, last in runs)


def request_tokens(plan: PlanData) -> str:
    """What a request is: for 1,536 + 512 tokens, for 57 × (1,536 + 512) tokens."""
    assert plan.predicted is not None, "a plan that fits has a prediction"
    tokens = f"{plan.predicted.prompt_tokens:,} + {plan.predicted.new_tokens:,}"
    return f"for {plan.batch:,} × ({tokens}) tokens" if plan.batch > 1 else f"for {tokens} tokens"


def bases(predicted: Predicted) -> dict[str, tuple[str, ...]]:
    """What a prediction rests on, by kind, in the words of the table."""
    return {
        "given": predicted.given, "measured": predicted.measured, "learned": predicted.learned,
        "assumed": predicted.assumptions,
    }  # fmt: skip


def streaming_sentence(streamed: Streamed) -> str:
    """What streaming would give, in a line."""
    return (
        f"if the host's parts were streamed through {' and '.join(streamed.through)}, which runs do not do yet: "
        f"{rate(streamed.prefill_tokens_per_s)} tokens/s of prompt, {duration(streamed.request_seconds)} a request"
    )


def rate(value: float) -> str:
    """Three figures of tokens a second, or all of a thousand and more."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """Three figures of what people say: 38.2 s, 12.4 min, 3.1 h."""
    for unit, size, limit in (("s", 1, 100), ("min", 60, 100), ("h", 3600, 48)):
        if seconds < limit * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 86400:.3g} days"
