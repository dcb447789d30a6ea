"""Is the solution in the span? Scores theta_0 with parts of theta_T - theta_0 added, for each recorded fine-tuning.

    python examples/endpoint.py results/z23-table1-stsb

The last checkpoint is a row of W, so every subspace made of a whole trajectory holds its layers. What they are worth
without the embeddings and the head that were trained with them says what training in that subspace could reach.
"""

import sys
from pathlib import Path

import torch

from distsub.finetune import data, pretrained, trajectory
from distsub.finetune.train import Evaluation, autocast_for
from distsub.results import Store

PARTS = {
    "everything": lambda name: True,
    "layers": lambda name: ".layer." in name,
    "the rest": lambda name: ".layer." not in name,
}

store = Store.open(sys.argv[1])
recordings = {each.id: each for row in store.read(answers=False) for each in row.trial.recordings}
for recording in recordings.values():
    trial = recording.trial
    prepared = pretrained.prepare(trial.model, trial.revision)
    moved = trajectory.load(trajectory.directory(Path(store.files.root), recording)).updates[-1]
    evaluation = Evaluation(
        trial, pretrained.tokenizer(prepared), data.load(trial.task, trial.budget).validation, "cpu"
    )
    found = {}
    for part, belongs in PARTS.items():
        model = pretrained.build(prepared, trial.task.num_labels, trial.seeds.head, private=True)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if belongs(name):
                    parameter += moved[name].float()
        found[part] = evaluation.run(model, autocast_for(trial.budget.precision, "cpu")[1])
    scores = ", ".join(f"{part} {score:.3f}" for part, score in found.items())
    print(f"{trial.task.name} s{trial.seeds.head}: {trial.task.metric} with theta_T - theta_0 of {scores}")
