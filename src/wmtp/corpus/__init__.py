"""Raw corpora to clean text: readers of raw formats, and the stages that a document goes through."""
