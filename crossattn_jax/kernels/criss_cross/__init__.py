"""Criss-cross attention: every pixel attends to its row and its column under one softmax."""
