"""Raw corpora to clean text: readers of raw formats, and the stages a document goes through."""
