"""Image fusion: one image from an infrared and a visible one."""
