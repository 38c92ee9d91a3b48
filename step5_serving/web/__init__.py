"""The page at `/`: a chat playground and the last ten minutes of operation."""
