"""What several models repeat: types, options, checks of their inputs and fields, classifiers."""
