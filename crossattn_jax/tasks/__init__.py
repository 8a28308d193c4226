"""Tasks: what a model is trained to do. The loop knows only `base.Task`."""
