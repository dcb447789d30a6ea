"""`python -m distsub.cli`."""

from distsub.cli import main

main()
