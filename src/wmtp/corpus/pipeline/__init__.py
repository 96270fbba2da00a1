"""From a list of sources to a folder of clean text, and what became of every byte."""
