"""CrossViT and its originals."""
