"""What papers report, as pure functions."""
