"""Batch scheduling policies of an engine as pure code: what the next iteration runs, or until when to wait."""
