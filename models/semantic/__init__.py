"""Semantic downlink precoding: pictures for several users, coded and precoded with regard to picture and channel."""
