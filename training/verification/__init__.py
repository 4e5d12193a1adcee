"""The proof that a saved adapter loads onto its base and computes what the trained model did."""
