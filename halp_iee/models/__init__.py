"""The networks: those of the papers that torchvision lacks, and one way to build any."""

from halp_iee.models.catalogue import available, build, check_fits, default_input_shape

__all__ = ["available", "build", "check_fits", "default_input_shape"]
