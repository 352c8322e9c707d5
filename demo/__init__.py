"""The bundled checkpoint: what draws its pictures, what trains it."""
