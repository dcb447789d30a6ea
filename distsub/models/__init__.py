"""Pretrained models: where their files are, what they hold, and PEFT's adapters of them."""
