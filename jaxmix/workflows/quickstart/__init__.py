"""`jaxmix quickstart`."""
