"""What the families with BatchNorm share.

Flax keeps the biased variance of a batch for evaluation, torch the unbiased one; both normalise with the biased one in
training. A running variance that is learned here is (n - 1) / n of what torch would have kept, where n counts a
channel's values, images × height × width: 0.008 % less for 256 images of 7 by 7 pixels, 0.8 % for 32 of 2 by 2, 6 % for
4 of 2 by 2 (a batch of 32 in 8 parts, `optim.accumulate`). What evaluation then computes is half as many per cent
larger. Weights from files bring torch's statistics with them.
"""

MOMENTUM = 0.9  # share of the running statistics that a step keeps; torch counts the other share, 0.1
