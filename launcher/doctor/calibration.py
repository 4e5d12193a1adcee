"""Measures a PC, as JSON: the text of this file is run on it, in its checkout, as the doctor's scripts are."""

from training.calibration.__main__ import main

if __name__ == "__main__":
    main([])
