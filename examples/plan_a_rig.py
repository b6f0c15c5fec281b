"""What would one more card buy me? Plans need no weights and no GPU.

python examples/plan_a_rig.py [MODEL]
"""

import sys

from bigrun import BigrunError, Plan, plan

RIG = {"cpu": "96GB", "context": 8192}


def blocks(made: Plan) -> tuple[int, int]:
    """(blocks that lie on GPUs, blocks of the model). Experts are parts of their own, and belong to their block."""
    places = [(placement.part, placement.stored_on) for placement in made.placements]
    places += [(part, "nowhere") for part in made.unplaced]
    where: dict[str, set[str]] = {}
    for part, place in places:
        if part.startswith("blocks."):
            where.setdefault(part.removesuffix(".experts"), set()).add(place)
    return sum(all(place.startswith("cuda") for place in each) for each in where.values()), len(where)


def main(model: str) -> None:
    print(f"{'rig':10} {'fits':5} {'blocks on GPUs':>15} {'tokens/s predicted':>19}")
    for cards in range(1, 6):
        made = plan(model, gpus=f"{cards}xRTX3090", **RIG)
        on_gpus, count = blocks(made)
        rate = f"{made.predicted.decode_tokens_per_s:.1f}" if made.predicted else "-"
        print(f"{cards}xRTX3090 {made.fits!s:5} {f'{on_gpus} of {count}':>15} {rate:>19}")
    asked = plan(model, gpus="1xRTX3090", target="5tok/s", **RIG)
    assert asked.answer is not None, "a question has an answer"
    change = asked.answer["change"] if asked.answer["option"] else "one card does"
    print(f"\n5 tokens/s: {change}")


try:
    main(sys.argv[1] if len(sys.argv) > 1 else "llama-3.1-70b")
except BigrunError as error:
    sys.exit(str(error))
