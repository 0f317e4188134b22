"""One vLLM replica as an exact discrete-event stepper, and the arrivals and lengths to drive it with."""
