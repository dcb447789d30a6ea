"""What a trial does: tasks, pretrained models, one training."""
