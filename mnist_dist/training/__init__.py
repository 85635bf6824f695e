"""One run from step to step, as the host sees it."""
