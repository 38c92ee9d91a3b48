"""The evaluation harness: did the adapter help, by how much, is that more than chance, and what was lost elsewhere."""
