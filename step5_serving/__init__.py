"""Step 5: a vLLM-backed service that could take traffic: keys, limits, fair admission, accounting, observability."""
