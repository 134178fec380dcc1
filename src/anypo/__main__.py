"""`python -m anypo` is the command line."""

from anypo.cli import main

main()
