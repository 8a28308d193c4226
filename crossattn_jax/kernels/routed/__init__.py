"""Routed attention: every region of queries attends to the key regions that its routing names."""
