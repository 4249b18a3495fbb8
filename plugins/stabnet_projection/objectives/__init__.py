"""What fields of physical systems, and SODEF, are trained with."""
