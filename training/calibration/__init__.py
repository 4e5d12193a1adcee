"""What a kind of card, or this PC's CPU, really is: measured by `shoal calibrate`, kept in Shoal's cache."""
