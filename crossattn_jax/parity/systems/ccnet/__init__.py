"""CCNet and its original."""
