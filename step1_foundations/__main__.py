"""`python -m step1_foundations VERB`, the same program as the installed command `step1`."""

from step1_foundations.cli import main

if __name__ == "__main__":
    main()
