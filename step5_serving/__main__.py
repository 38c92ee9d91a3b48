"""`python -m step5_serving VERB`, the same program as the installed command `step5`."""

from step5_serving.cli import main

if __name__ == "__main__":
    main()
