"""Image-sentence retrieval: which sentence describes which image."""
