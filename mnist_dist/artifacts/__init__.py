"""Models for others to use: SavedModels and single files, read again before they have a name."""
