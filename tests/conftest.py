"""A tiny real model and task on disk, made once: two layers of random BERT, and sentences that a word decides."""

import os
import random
import signal
import tempfile
import urllib.request

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny tensors: a second thread only waits

os.environ["DISTSUB_CACHE"] = tempfile.mkdtemp(prefix="distsub-test-cache-")

import pytest
from hypothesis import settings

signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background is born deaf to it
# Without deadlines: how long an example takes is no property of the code.
settings.register_profile("fast", deadline=None, max_examples=20)
settings.register_profile("full", deadline=None, max_examples=100)

WORDS = [f"w{i}" for i in range(40)] + ["good", "bad"]


@pytest.fixture(autouse=True)
def hear_interrupts():
    """Give Ctrl-C back to the next test: the command line, which tests call in this process, ends deaf to a second."""
    yield
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config):
    """Draw all examples where slow tests run too, and a fifth of them otherwise."""
    settings.load_profile("fast" if config.option.markexpr == "not slow" else "full")


@pytest.hookimpl(trylast=True)  # after what -m leaves out
def pytest_collection_modifyitems(config, items):
    """Where processes share the tests, let some begin with those that wait for Ray, the longest first.

    xdist gives each process one stretch of the tests, and an idle one the last half of what another has left. So none
    is left with a long test at the end, and short ones run beside those that wait. The first process gets those that
    share a cluster, the last gets no long ones where there are three.
    """
    given = getattr(config, "workerinput", None)
    if given is None:
        return
    number = given["workercount"]
    limits = {item: max((mark.args[0] for mark in item.iter_markers("timeout")), default=0) for item in items}
    long = sorted((item for item in items if limits[item] > 300), key=lambda item: -limits[item])
    stretches = [[item for item in long if "rig" in item.fixturenames], *([] for _ in range(1, number))]
    for place, item in enumerate(item for item in long if "rig" not in item.fixturenames):
        stretches[min(number - 1, 1 + place % max(1, number - 2))].append(item)
    short = [item for item in items if limits[item] <= 300]
    items.clear()
    for place, stretch in enumerate(stretches):
        size = (len(short) + sum(map(len, stretches[place:]))) // (number - place)  # as xdist cuts them
        taken = max(0, size - len(stretch))
        items += stretch + short[:taken]
        del short[:taken]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-model")
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n")
    BertTokenizerFast(vocab=str(vocabulary)).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS) + 5,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
        initializer_range=0.1,
    )
    BertModel(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny-data")
    draw = random.Random(0)
    for name, rows in (("train", 256), ("validation", 128)):
        lines = ["sentence,label"]
        for i in range(rows):
            words = draw.choices(WORDS[:40], k=draw.randint(3, 8))
            words.insert(draw.randint(0, len(words)), "good" if i % 2 else "bad")
            lines.append(f"{' '.join(words)},{i % 2}")
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    return str(folder)


SWEEP = """\
name = "tiny"
models = [{{ path = "{model}" }}]
methods = ["said", "did"]
seeds = 2
policy = "bisection"
dims = [8, 16, 64, 256]

[[tasks]]
name = "tiny"
path = "{data}"
text = "sentence"
num_labels = 2
metric = "accuracy"

[search]
etas = [1.0, 3.0]
learning_rate = 1e-3

[baseline]
learning_rates = [1e-3, 3e-3]

[budget]
steps = 40
batch_size = 16
max_length = 16
eval_every = 10
precision = "fp32"

[resources]
cpus_per_trial = 1
retries = 1
"""


@pytest.fixture(scope="session")
def tiny_text(tiny_model, tiny_data):
    return SWEEP.format(model=tiny_model, data=tiny_data)


@pytest.fixture(scope="session")
def warm(tmp_path_factory):
    """The command line, in processes that need not import anything first."""
    from warm import Warm

    server = Warm(tmp_path_factory.mktemp("warm"))
    yield server
    server.end()


@pytest.fixture
def tiny_sweep(tiny_text, tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(tiny_text)
    return path


@pytest.fixture(scope="session")
def series(tmp_path_factory, tiny_text):
    """A fine-tuning that is recorded, and leaves checkpoints at the same steps; theta_0 with its head beside them."""
    import json

    import torch

    from distsub.config import load_sweep
    from distsub.finetune.recorder import Recorder
    from distsub.finetune.train import Observer, train
    from distsub.records import Recording

    folder = tmp_path_factory.mktemp("series")
    (folder / "tiny.toml").write_text(tiny_text)

    class Save(Observer):
        def on_start(self, training):
            training.model.save_pretrained(folder / "theta_0")

        def on_step(self, training):
            if training.step % 10 == 0:
                place = folder / f"checkpoint-{training.step}"
                training.model.save_pretrained(place)
                (place / "trainer_state.json").write_text(json.dumps({"global_step": training.step}))

    torch.set_num_threads(1)
    recording = Recording(load_sweep(folder / "tiny.toml").searches()[0].baseline[0], every=10, dtype="float32")
    train(recording.trial, [Recorder(recording, folder / "recorded"), Save()])
    return folder


@pytest.fixture
def bucket(monkeypatch):
    """An object store on loopback: the address of its bucket, and the options to reach it."""
    server_of = pytest.importorskip("moto.server", reason="moto[server] is not installed")
    from pyarrow import fs as pafs

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    server = server_of.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    options = f"endpoint_override={host}:{port}&scheme=http&region=us-east-1"
    reset = urllib.request.Request(f"http://{host}:{port}/moto-api/reset", method="POST")
    urllib.request.urlopen(reset).close()  # what another test of this process left outlives its server
    pafs.FileSystem.from_uri(f"s3://bucket?{options}&allow_bucket_creation=true")[0].create_dir("bucket")
    yield "s3://bucket", options
    server.stop()


@pytest.fixture(scope="session")
def bench():
    """Give the builder of searches."""
    from builders import Bench

    return Bench()


@pytest.fixture
def observation():
    """Give the maker of observations."""
    from builders import make_observation

    return make_observation
