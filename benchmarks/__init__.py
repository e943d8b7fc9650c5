"""Measurements, each printing ratios taken side by side in one run and one JSON object last."""
