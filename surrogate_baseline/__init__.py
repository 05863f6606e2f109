"""Surrogate-gradient training of spiking networks: what ``eventprop`` is compared with, on the same data."""
