"""Raw corpora to clean text: readers of raw formats, stages that a document goes through."""
