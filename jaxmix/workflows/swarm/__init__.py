"""`jaxmix swarm`."""
