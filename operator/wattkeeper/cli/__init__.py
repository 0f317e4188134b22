"""The wattkeeper command."""
