"""Detection: images whose objects have boxes, classes and masks."""
