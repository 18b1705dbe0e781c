"""The tests of openline.

``unit/`` takes modules one by one; ``unit/transport/`` and ``unit/quic/`` whole transports on real sockets of
loopback, with peers that say anything; ``unit/cli/`` the command. ``simulation/`` plays the same rules in
virtual time with seeded faults, ``faults/`` real processes and kernels in network namespaces, ``interop/``
the real npm packages. A file says in its first line which rule it is about, and begins with its subject:

    3.1  which connection carries a message      routing*, claims*, matched, node_ids*
    3.2  alive, suspect, dead                    liveness*
    3.3  one connection of two                   duplicates*, identity_conflict, interleavings
    3.4  once, in order, acknowledged            delivery*
    3.5  bounded everywhere                      backpressure*, handlers, receive, flow, bounded
    3.6  who is there                            handshake*, identity*, tls*, bad_input*
    3.7  plain peers                             messages, plain, compression, websockets*
    3.10 strangers pay for themselves            strangers, crowds, floods, half_frames, lifetimes*
"""
