"""`python -m limbeck` is `limbeck`."""

from limbeck.cli.main import main

main()
