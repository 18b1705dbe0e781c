from __future__ import annotations

from hypothesis import HealthCheck, settings

# No time limit for one example: a busy machine is not a failure.
settings.register_profile("openline", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("openline")
