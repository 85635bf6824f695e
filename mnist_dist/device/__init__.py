"""What runs on devices: the strategy, the loops, the variables, the data."""
