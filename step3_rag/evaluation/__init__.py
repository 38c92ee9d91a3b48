"""What step 3 is measured on and how: data, metrics, resumable runs, tables (cli_eval.py runs them)."""
