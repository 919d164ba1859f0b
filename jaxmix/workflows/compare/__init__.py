"""`jaxmix compare`."""
