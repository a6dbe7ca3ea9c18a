"""`python -m pipelines` is `pretext`."""

from pipelines.cli import main

main()
