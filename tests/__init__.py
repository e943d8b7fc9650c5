"""Tests: small worlds, no network, no GPU; each name is a sentence that the test proves."""
