"""Step 1: load a language model, and look inside while it works."""
