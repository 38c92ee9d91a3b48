"""Step 3: a self-reflective RAG application; every decision visible, every part's worth measured."""
