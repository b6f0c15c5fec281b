"""What would one more card buy me? Plans need no weights and no GPU.

python examples/plan_a_rig.py llama-3.1-70b
"""

import sys

from bigrun import plan

model = sys.argv[1] if len(sys.argv) > 1 else "llama-3.1-70b"
print(f"{'rig':10} {'fits':5} {'blocks on GPUs':>15} {'tokens/s predicted':>19}")
for cards in range(1, 6):
    made = plan(model, gpus=f"{cards}xRTX3090", cpu="96GB", context=8192)
    blocks = [p for p in made.placements if p.part.startswith("blocks.")]
    on_gpus = sum(p.decode_on.startswith("cuda") for p in blocks)
    rate = f"{made.predicted.decode_tokens_per_s:.1f}" if made.predicted else "-"
    print(f"{cards}xRTX3090 {made.fits!s:5} {f'{on_gpus} of {len(blocks)}':>15} {rate:>19}")

asked = plan(model, gpus="1xRTX3090", cpu="96GB", context=8192, target="5tok/s")
assert asked.answer is not None
print(f"\n5 tokens/s take: {asked.answer['change']}")
