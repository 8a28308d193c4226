"""What is recorded of mmdetection."""
