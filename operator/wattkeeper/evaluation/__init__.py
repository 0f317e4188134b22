"""How accurate the latency model is: designed operating points against the exact stepper, and measured tables."""
