"""openline: agent processes talk directly, and answer on the line that is already open.

``import openline`` reads nothing but this file: each name is read with its module when it is first used, and
is an ordinary name from then on. ``from openline import load_transport`` reads the whole engine at once.
"""

# As type checkers know it; ``typing`` itself takes longer to read than all that is asked for here.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from . import sync
    from .address import Address
    from .config import Config, Tls
    from .errors import (
        Closed,
        Error,
        IdentityConflict,
        InvalidAddress,
        InvalidIdentity,
        InvalidMessage,
        InvalidSignature,
        MessageTooLarge,
        NotConfirmed,
        Refused,
        RemoteError,
        Unreachable,
        WrongLoop,
    )
    from .identity import Identity, node_id_of, public_key_of
    from .message import Message, Receipt
    from .peer import Peer, PeerEvent
    from .routing.router import Explanation
    from .signing import canonical, sign_message, verify_message
    from .stats import Stats
    from .transport import Listener, Transport, load_transport
    from .typed import TypedMessage
    from .usable import Capabilities, capabilities

__version__ = "0.1.0"

__all__ = [
    "Address",
    "Capabilities",
    "Closed",
    "Config",
    "Error",
    "Explanation",
    "Identity",
    "IdentityConflict",
    "InvalidAddress",
    "InvalidIdentity",
    "InvalidMessage",
    "InvalidSignature",
    "Listener",
    "Message",
    "MessageTooLarge",
    "NotConfirmed",
    "Peer",
    "PeerEvent",
    "Receipt",
    "Refused",
    "RemoteError",
    "Stats",
    "Tls",
    "Transport",
    "TypedMessage",
    "Unreachable",
    "WrongLoop",
    "__version__",
    "canonical",
    "capabilities",
    "load_transport",
    "node_id_of",
    "public_key_of",
    "sign_message",
    "sync",
    "verify_message",
]

if not TYPE_CHECKING:  # a type checker goes by the imports above, and finds what is misspelt
    # Where each name is read from. No module may be called as a name that it does not hold itself:
    # the import of it would put the module in the name's place.
    _MODULES = {
        "address": "Address",
        "config": "Config Tls",
        "errors": "Closed Error IdentityConflict InvalidAddress InvalidIdentity InvalidMessage"
        " InvalidSignature MessageTooLarge NotConfirmed Refused RemoteError Unreachable WrongLoop",
        "identity": "Identity node_id_of public_key_of",
        "message": "Message Receipt",
        "peer": "Peer PeerEvent",
        "routing.router": "Explanation",
        "signing": "canonical sign_message verify_message",
        "stats": "Stats",
        "transport": "Listener Transport load_transport",
        "typed": "TypedMessage",
        "usable": "Capabilities capabilities",
    }

    _ROOMS = (
        *_MODULES,
        *(
            "backends",
            "connection",
            "core",
            "environment",
            "node",
            "peers",
            "receiving",
            "routing",
            "runtime",
        ),
        *("sending", "testing"),
    )

    del TYPE_CHECKING

    def __getattr__(name):
        from importlib import import_module

        if name == "sync":
            return import_module(".sync", __name__)
        for module, names in _MODULES.items():
            if name in names.split():
                found = globals()[name] = getattr(import_module(f".{module}", __name__), name)
                return found
        if name in _ROOMS:  # openline.errors and its like, also without an import of their own
            return import_module(f".{name}", __name__)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__():
        return sorted(__all__)
