"""Measurements, each taken side by side in one run and printed, one JSON object last."""
