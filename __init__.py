"""semair: an over-the-air testbed for semantic-aware MIMO."""

__version__ = "0.1.0"
