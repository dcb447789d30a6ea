"""The sweep file: TOML in, frozen records out. The only place that reads what a person typed."""

from distsub.config.sweep_file import load_sweep, parse_sweep
