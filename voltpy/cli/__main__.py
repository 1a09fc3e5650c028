"""`python -m voltpy.cli`: the command line where its script is not on the PATH."""

from voltpy.cli import main

main()
