"""Training: settings, the loop, its objective and optimizer, and distributed workers."""
