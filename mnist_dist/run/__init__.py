"""What a run leaves on disk: directory, settings, checkpoints, metrics."""
