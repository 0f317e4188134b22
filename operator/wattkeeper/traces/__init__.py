"""Recorded and generated traffic: types, files and generators."""
