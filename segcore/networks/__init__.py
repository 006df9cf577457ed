"""Trunks, heads, and the layers that published networks need."""
