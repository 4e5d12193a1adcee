"""Stand-ins for a card, for every process that tests start: what a CPU can show of a card's path is shown with these.

    make test-stand-ins                      # the integration tests under varlen,cuda_accelerator
    make test-stand-ins STAND_INS=varlen=2.10

Each module here but `importing` is one, named in SHOAL_STAND_INS, and has `install(argument)`; "nvml=3060+4090" gives
it the argument "3060+4090". `site/sitecustomize.py`, which every Python on that PYTHONPATH runs first, installs them.
"""
