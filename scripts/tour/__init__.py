"""`make tour`: one narrated run through all five steps, and one page with everything that it found."""
