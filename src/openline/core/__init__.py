"""The pure core: no asyncio, no sockets, no clocks. Time is a parameter."""
