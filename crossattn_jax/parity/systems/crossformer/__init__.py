"""CrossFormer, CrossFormer++ and their originals."""
