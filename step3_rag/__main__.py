"""`python -m step3_rag VERB`, the same program as the installed command `step3`."""

from step3_rag.cli import main

if __name__ == "__main__":
    main()
