"""casemated: settings, wiring and main loop."""
