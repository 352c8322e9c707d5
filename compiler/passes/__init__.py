"""The passes, one a file. compiler/pipeline.py says in which order they run."""
