"""Types, pytree states, simplex mathematics, sharding, schedules and errors that every other layer builds on."""
