"""Is the solution in the span? Scores theta_0 with parts of theta_T - theta_0 added, for each recorded fine-tuning.

    python examples/endpoint.py results/z23-stsb

The last checkpoint is a row of W, so every subspace made of a whole trajectory holds its layers. What they are worth
without the embeddings and the head that were trained with them says what training in that subspace could reach.
"""

import sys

import torch

from distsub.data import dataset
from distsub.finetune import trajectory
from distsub.finetune.evaluation import Evaluation
from distsub.finetune.precision import autocast_for
from distsub.learned.updates import blocks, recorded, root_of
from distsub.models import pretrained
from distsub.records import Trial
from distsub.results import Store
from distsub.subspace import layout

store = Store.open(sys.argv[1])
for recording in recorded(root_of(store), store.read(answers=False)):
    trial = recording.source
    if not isinstance(trial, Trial):  # imported: what its scores are of is not known
        continue
    prepared = pretrained.prepare(trial.model.name, trial.model.revision)
    moved = trajectory.load(recording.path).updates[-1]
    validation = dataset.load(trial.task, trial.budget).validation
    _, autocast = autocast_for(trial.budget.precision, "cpu")
    frozen = pretrained.build(prepared, trial.task.num_labels, trial.seeds.head)
    tokenizer, length = pretrained.tokenizer(prepared), trial.budget.max_length
    evaluation = Evaluation(trial.task, length, tokenizer, validation, "cpu", frozen.config)
    layers = {entry.name for _, entries in blocks(layout.entries(frozen)) for entry in entries}
    parts = {"everything": set(moved), "layers": layers, "the rest": set(moved) - layers}
    found = {}
    for part, names in parts.items():
        model = pretrained.build(prepared, trial.task.num_labels, trial.seeds.head, private=True)
        with torch.no_grad():
            for name in names:
                model.get_parameter(name).add_(moved[name].float())
        found[part] = evaluation.run(model, autocast)
    scores = ", ".join(f"{part} {score:.3f}" for part, score in found.items())
    print(f"{trial.task.name} s{trial.seeds.head}: {trial.task.metric} with theta_T - theta_0 of {scores}")
