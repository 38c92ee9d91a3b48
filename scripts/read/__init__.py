"""The repository as a book: `make read`."""
