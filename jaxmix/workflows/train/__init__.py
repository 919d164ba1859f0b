"""`jaxmix train`, `plan` and `doremi`."""
