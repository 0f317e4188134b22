"""Measures the operator itself at sizes that nobody has at hand."""
