"""`python -m step4_finetune VERB`, the same program as the installed command `step4`."""

from step4_finetune.cli import main

if __name__ == "__main__":
    main()
