"""What turns a backbone's maps into a dense prediction."""
