"""What Matriarch does: one module a resource. Nothing here decides; `fsm` does."""
