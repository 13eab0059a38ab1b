"""Run the command line with ``python -m pgimgsearch``."""

from pgimgsearch.cli.app import main

main()
