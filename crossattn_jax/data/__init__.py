"""Data: sources of encoded images, augmentation, and the input pipelines of the tasks."""
