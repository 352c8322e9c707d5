"""The little that every part needs: configuration, errors, units, progress. Imports nothing of the project."""
