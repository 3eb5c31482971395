"""Radios that exist on the network alone: they speak the devices' own protocols, so real drivers connect to them."""
