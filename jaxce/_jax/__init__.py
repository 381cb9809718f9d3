"""What jaxce asks of JAX beyond its public functions: rules, primitives, axes and meshes."""
