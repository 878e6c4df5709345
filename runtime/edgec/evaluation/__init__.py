"""Labelled data, task metrics and what may be concluded from them."""
