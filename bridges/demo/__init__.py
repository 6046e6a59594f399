"""What `cpwl demo` draws: a toy in the plane, one in space."""
