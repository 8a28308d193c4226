"""Convolutions on sparse cells, whose neighbours are said by tables."""
