"""`jaxmix label`."""
