"""Images whose pixels have classes."""
