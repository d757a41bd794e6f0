"""What Matriarch decides, and nothing that touches the world: no file, socket, clock, randomness or process in here."""
