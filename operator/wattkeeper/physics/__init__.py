"""Iteration time, KV memory, power and clock of one replica as pure functions; the GPU and model catalogue."""
