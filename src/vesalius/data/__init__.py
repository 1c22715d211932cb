"""Inputs that analyses make or read: random tokens repeated, text cut into chunks."""
