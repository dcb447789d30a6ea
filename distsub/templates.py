"""The sweep file that `distsub init` writes."""

SWEEP = """\
# How few numbers does it take to fine-tune this model on this task?
# Every key: docs/sweep-file.md. Check before spending: distsub plan THIS_FILE

name = "first"
models = [{model}]
tasks = [{task}]
methods = ["said", "did"]                 # Aghajanyan et al. 2020, Eq. 3 and Eq. 1
seeds = 2
policy = "adaptive"
dims = {{ low = 100, high = 10000, ratio = 1.5 }}

[search]
etas = [0.1, 0.3, 1.0]                    # subspace step sizes, relative to full fine-tuning; docs/d90.md
learning_rate = 5e-5                      # the learning rate of full fine-tuning that eta scales

[baseline]
learning_rates = [5e-5, 1e-4]             # full fine-tuning tries these; its best score sets the threshold

[budget]                                  # of every single training
steps = 200
batch_size = 32
max_length = 128

[resources]
cpus_per_trial = 1
gpus_per_trial = 0
"""
