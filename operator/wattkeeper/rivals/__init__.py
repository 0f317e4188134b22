"""What people run today in place of a planner: autoscalers and static fleets, each as its documentation says."""
