"""The former place of ``openline.runtime.environment``, for programs that name it."""

from .runtime.environment import RealEnvironment

__all__ = ["RealEnvironment"]
