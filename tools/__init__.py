"""Scripts that make the files in the package; the package does not import them."""
