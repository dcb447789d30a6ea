"""How the first step of a method of PEFT grows with its size, at one learning rate.

    python benchmarks/peft_steps.py models/minilm-l3

One AdamW step from the start, head frozen, every linear layer adapted, on 16 rows of random tokens: the norm of the
change of all merged weights, and the first-order decrease of the loss (the sum of the gradient's absolute values), both
divided by the learning rate. The last line of each method has the exponents: norm ~ d^a, decrease ~ d^b.
"""

import copy
import sys
from typing import Any

import numpy as np
import torch

from distsub.models import peft_model, pretrained
from distsub.records import Peft

RATE, PRODUCT_RATE = 1e-5, 1e-6
"""Of types whose change of the weights is linear in their numbers, and of those that train factors of a product."""
PRODUCTS = ("UNILORA", "LORA", "VBLORA", "VERA")
OPTIONS = {"TINYLORA": ("r=8",)}
METHODS = ("TINYLORA", "UNILORA", "FOURIERFT", "LORA", "SHIRA", "VBLORA", "VERA", "RANDLORA")


def merged(model: Any) -> list[torch.Tensor]:
    return [p.detach().double() for p in copy.deepcopy(model).merge_and_unload().parameters()]


def step(prepared: Any, peft: str, asked: int) -> tuple[int, float, float]:
    base = pretrained.build(prepared, 2, head_seed=0).eval()
    method = Peft(peft, OPTIONS.get(peft, ()), head="frozen")
    [d], _ = peft_model.dims(base, method, (asked,))
    model, _ = peft_model.build(base, method, d, 0)
    trained, before = peft_model.trained(model.eval()), merged(model)
    torch.manual_seed(0)
    ids, labels = torch.randint(1000, 20000, (16, 24)), torch.randint(0, 2, (16,))
    model(input_ids=ids, labels=labels).loss.backward()
    rate = PRODUCT_RATE if peft in PRODUCTS else RATE
    decrease = sum(p.grad.abs().sum().item() for p in trained if p.grad is not None)
    torch.optim.AdamW(trained, lr=rate, weight_decay=0.0).step()
    moved = sum((a - b).square().sum().item() for a, b in zip(merged(model), before, strict=True)) ** 0.5
    return d, moved / rate, decrease


def main() -> None:
    torch.set_num_threads(1)
    prepared = pretrained.prepare(sys.argv[1])
    for peft in METHODS:
        rows = {row[0]: row for row in (step(prepared, peft, 2 ** (5 + 2 * i)) for i in range(7))}
        d, norm, decrease = np.array([*rows.values()]).T
        for row in rows.values():
            print(peft, *(f"{value:.4g}" for value in row))
        a, b = (np.polyfit(np.log(d), np.log(each), 1)[0] for each in (norm, decrease))
        print(f"{peft}: norm ~ d^{a:.2f}, decrease ~ d^{b:.2f}", flush=True)


if __name__ == "__main__":
    main()
