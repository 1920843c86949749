"""Classify blurred images without deblurring them."""
