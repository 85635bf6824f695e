"""Networks, losses, update rules, augmentation and random draws."""
