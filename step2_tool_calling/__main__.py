"""`python -m step2_tool_calling VERB`, the same program as the installed command `step2`."""

from step2_tool_calling.cli import main

if __name__ == "__main__":
    main()
