"""Vector fields whose states are meant to converge to the right prediction."""

from .data_controlled import DataControlledField

__all__ = ["DataControlledField"]
