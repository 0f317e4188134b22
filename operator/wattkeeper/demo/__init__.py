"""The one-command demo: embedded API, live twin and the real controller, played through a day of traffic."""
