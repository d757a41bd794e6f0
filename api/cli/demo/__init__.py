"""`matriarch demo`: a real three-node cluster on this machine, to play with or as a tour."""
