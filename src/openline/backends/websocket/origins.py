"""Which pages may connect: a browser says in each upgrade what site its page is from (RFC 6455 section 10.2).

Any page that a user opens can reach a node on the user's own machine. Programs send no ``Origin``.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from ...address import canonical_ip

# A page that somebody has opened from the disk. What may be any page, a sandboxed frame, says "null".
_FROM_DISK = "file://"
ANY = "*"


def may_connect(origin: str | None, host: str | None, allowed: tuple[str, ...]) -> bool:
    """``host`` is the header of that name, ``allowed`` is ``Config.origins``.

    A page from the very host may, where that is an IP or ``localhost``: a name could be made to point
    here by whoever the page is from (DNS rebinding).
    """
    if origin is None or origin in allowed or ANY in allowed or origin == _FROM_DISK:
        return True
    try:
        page, here = urlsplit(origin).hostname, urlsplit(f"//{host}").hostname
    except ValueError:
        return False
    return page is not None and page == here and (page == "localhost" or canonical_ip(page) is not None)
