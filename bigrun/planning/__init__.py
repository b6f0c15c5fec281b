"""Pure decisions: which device stores and computes each part, what that takes and how fast it is."""
