"""Batch scheduling policies of an inference engine as pure code: what runs in the next iteration, or until when to wait."""
