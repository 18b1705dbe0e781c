"""openline: agent processes talk directly, and answer on the line that is already open."""

from .address import Address
from .capabilities import Capabilities, capabilities
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
    "verify_message",
]
