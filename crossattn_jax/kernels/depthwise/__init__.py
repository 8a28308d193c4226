"""Depthwise convolution: every channel has its own small kernel."""
