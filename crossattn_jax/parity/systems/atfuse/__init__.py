"""ATFuse and its original."""
