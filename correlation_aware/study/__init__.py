"""Studies of what networks do, after the paper's."""
