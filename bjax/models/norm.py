"""What the families with BatchNorm share."""

MOMENTUM = 0.9  # share of the running statistics that a step keeps; torch counts the other share, 0.1
