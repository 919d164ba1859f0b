"""`jaxmix discover`."""
