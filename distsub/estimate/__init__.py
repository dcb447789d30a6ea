"""How sure: d90 with its interval, from rows or from given numbers. Pure: no files, no clock, no torch, no Ray."""
