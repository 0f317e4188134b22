"""plan(): the joint decision over replicas, power cap and engine arguments. Pure; no clock, no I/O."""
