"""Step 2: a tool-calling command line for external APIs, with prompting as a measured lever."""
