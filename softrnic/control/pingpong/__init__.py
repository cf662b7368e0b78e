"""Peers of ibv_rc_pingpong, ibv_uc_pingpong, ibv_ud_pingpong and ibv_srq_pingpong, in either role.

    with Pingpong(host.device, Options(Kind.RC)) as game, socket.create_server(("", PORT)) as listener:
        print(game.serve(listener))

What they say over TCP is in exchange.py, what they do with their queue pairs in game.py.
"""

from __future__ import annotations

from softrnic.control.pingpong.exchange import PORT, Destination
from softrnic.control.pingpong.game import Kind, Options, Pingpong, PingpongError, Result

__all__ = ["PORT", "Destination", "Kind", "Options", "Pingpong", "PingpongError", "Result"]
