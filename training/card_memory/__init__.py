"""A card's memory, and the host memory that its copies come from: pinned, capped, measured, given back."""
