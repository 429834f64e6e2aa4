"""Scripts that build files which the package ships; the package does not import them."""
