"""MMViT and its original."""
