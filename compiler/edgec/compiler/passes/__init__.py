"""Graph passes: one module each; a pass's docstring is its rewrite rule."""
