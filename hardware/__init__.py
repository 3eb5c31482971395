"""Radios behind one interface. Every module here that defines a subclass of Radio is a backend."""
