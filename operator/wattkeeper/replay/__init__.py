"""A trace against a fleet under several policies: the real planner, and what people run today."""
